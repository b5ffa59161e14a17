"""Training a network, alone or from a teacher."""
