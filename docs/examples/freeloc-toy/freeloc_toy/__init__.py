"""ToyDiT and its plugin for freeloc."""
