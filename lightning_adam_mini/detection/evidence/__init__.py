"""What running a model shows of its attention: the third layer of detection."""

from lightning_adam_mini.detection.evidence.evidence import Evidence as Evidence
from lightning_adam_mini.detection.evidence.evidence import NotSeen as NotSeen
from lightning_adam_mini.detection.evidence.evidence import ParameterEvidence as ParameterEvidence
from lightning_adam_mini.detection.evidence.failure import DoesNotRunError as DoesNotRunError
from lightning_adam_mini.detection.evidence.failure import Failure as Failure
from lightning_adam_mini.detection.evidence.probe import example_call as example_call
from lightning_adam_mini.detection.evidence.probe import probe_attention as probe_attention
from lightning_adam_mini.detection.evidence.probe import probe_call as probe_call
from lightning_adam_mini.detection.evidence.tape import TooLongError as TooLongError
