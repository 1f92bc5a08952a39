"""One picture of a module for all who show it: what this server knows, the verdict in one sentence, the words."""
