import sys

from lightning_utilities.core import rank_zero

_log = getattr(rank_zero, "log", None)

from lightning_adam_mini.callbacks.adam_mini import AdamMiniCallback as AdamMiniCallback  # noqa: E402
from lightning_adam_mini.callbacks.audit import PartitionAudit as PartitionAudit  # noqa: E402
from lightning_adam_mini.callbacks.badam import BAdam as BAdam  # noqa: E402
from lightning_adam_mini.callbacks.monitoring import Monitoring as Monitoring  # noqa: E402
from lightning_adam_mini.callbacks.snr_monitor import SNRMonitor as SNRMonitor  # noqa: E402

# Importing lightning.pytorch, as the above does, takes over the messages of a pytorch_lightning that is there already.
if "pytorch_lightning" in sys.modules and _log is not None:
    rank_zero.log = _log
