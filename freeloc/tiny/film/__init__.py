"""A second tiny model, of another kind, trained on real footage: a small CogVideoX and an animated film."""
