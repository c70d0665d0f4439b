"""What a process gives up before it reads a stranger's bytes: files, network, other programs, other processes."""
