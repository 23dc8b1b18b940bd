"""Profiles: which correction each layer of a model gets, in files that people share."""
