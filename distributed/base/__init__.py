"""Floor 1: configuration, quantities, buffers, offloading, callables and host addresses."""
