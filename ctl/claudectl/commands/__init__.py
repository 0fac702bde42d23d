"""One module for each command noun; ``command`` is what the root offers under the module's name."""
