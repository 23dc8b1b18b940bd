"""An attention backend, a method and a probe depth for freeloc."""
