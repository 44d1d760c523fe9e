"""C++ operators for the forward on a CPU."""
