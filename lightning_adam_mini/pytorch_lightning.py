"""The callbacks as ``pytorch_lightning.Callback`` too, for those who train with ``pytorch_lightning`` instead of ``lightning.pytorch``.

Either Trainer takes them without this module; ``LightningCLI`` and type checkers ask for a subclass of their own package's. The callbacks
become callbacks of both instead of having twins: a command line and a checkpoint know one by its name, which two classes would share.

Example:
    >>> import pytorch_lightning as pl
    >>> from lightning_adam_mini.pytorch_lightning import AdamMiniCallback
    >>> trainer = pl.Trainer(callbacks=[AdamMiniCallback()], logger=False, enable_checkpointing=False)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytorch_lightning

from lightning_adam_mini import callbacks

if TYPE_CHECKING:

    class AdamMiniCallback(callbacks.AdamMiniCallback, pytorch_lightning.Callback):  # type: ignore[misc, override]
        """See :class:`lightning_adam_mini.AdamMiniCallback`."""

    class BAdam(callbacks.BAdam, pytorch_lightning.Callback):  # type: ignore[misc, override]
        """See :class:`lightning_adam_mini.BAdam`."""

    class PartitionAudit(callbacks.PartitionAudit, pytorch_lightning.Callback):  # type: ignore[misc, override]
        """See :class:`lightning_adam_mini.PartitionAudit`."""

    class SNRMonitor(callbacks.SNRMonitor, pytorch_lightning.Callback):  # type: ignore[misc, override]
        """See :class:`lightning_adam_mini.SNRMonitor`."""

else:
    AdamMiniCallback, BAdam = callbacks.AdamMiniCallback, callbacks.BAdam
    PartitionAudit, SNRMonitor = callbacks.PartitionAudit, callbacks.SNRMonitor
    for _kind in (AdamMiniCallback, BAdam, PartitionAudit, SNRMonitor):
        if not issubclass(_kind, pytorch_lightning.Callback):
            _kind.__bases__ = (*_kind.__bases__, pytorch_lightning.Callback)
