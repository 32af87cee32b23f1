"""A run: its folder, its cases, the processes that run them, what is measured on each network."""
