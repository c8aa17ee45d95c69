"""Adam-mini for PyTorch Lightning: one callback halves the optimizer's memory."""

from lightning_adam_mini._warnings import AdamMiniWarning as AdamMiniWarning
from lightning_adam_mini.layout import BlockLayout as BlockLayout
from lightning_adam_mini.optim import AdamMini as AdamMini
from lightning_adam_mini.optim import to_adamw_state_dict as to_adamw_state_dict
