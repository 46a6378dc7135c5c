"""The caller's ``torch.autocast``, kept to be entered again around the model alone."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Autocast:
    """The caller's ``torch.autocast``: the model runs in it, the solver around it does not."""

    device_type: str = "cpu"
    enabled: bool = False
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def ambient(cls, device: torch.device) -> "Autocast":
        """Return what is switched on where this is called."""
        kind = device.type
        return cls(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))

    def __call__(self) -> torch.autocast:
        """Enter it; without its cache, whose casts belong to somebody else's graph."""
        return torch.autocast(
            self.device_type, enabled=self.enabled, dtype=self.dtype, cache_enabled=False
        )
