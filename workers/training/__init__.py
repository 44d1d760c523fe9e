"""Training of draft models: a target's answers, a smaller model of its own layers, and how far that is accepted."""
