"""C++ operators for the CPU: the forward's, and the choice's."""
