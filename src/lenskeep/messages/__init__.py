"""Everything that crosses a process, as frozen structs."""
