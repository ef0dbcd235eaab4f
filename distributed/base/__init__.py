"""Floor 1: configuration, quantities, buffers, the offload thread, callables, host addresses."""
