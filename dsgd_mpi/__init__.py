"""How should SGD be spread over many processors? Train ResNets over MPI, synchronously, one-sided and by gossip."""

__version__ = "0.1.0"
