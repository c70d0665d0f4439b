"""What the processes that read models are left with, by their cameras and their files."""
