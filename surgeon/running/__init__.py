"""How a run goes on this machine: threads, signals, memory, and the processes that share it."""
