"""What a process gives up before it reads a model: files, network, other programs, other processes."""
