"""How a running model's attention calls are seen and answered: hooks, interceptors, and the state of a forward."""
