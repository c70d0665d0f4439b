"""What the fleet remembers. SQL stands here and nowhere else in the fleet."""
