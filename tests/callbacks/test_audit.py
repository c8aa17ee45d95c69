import json
import pickle

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_adam_mini import AdamMiniCallback, PartitionAudit

from .models import TokenModel, fit, weights


def test_audits_the_first_batch_and_changes_nothing(tmp_path):
    plain = TokenModel()
    fit(plain, AdamMiniCallback(partition="adam_mini"), max_steps=3)
    audited, audit = TokenModel(), PartitionAudit(columns=4, examples=4, dirpath=tmp_path)
    fit(audited, AdamMiniCallback(partition="adam_mini"), audit, max_steps=3)
    torch.testing.assert_close(weights(audited), weights(plain), rtol=0, atol=0)
    found = {finding.segment.name: finding.own.label for finding in audit.audit.findings}
    assert found["encoder.self_attn.in_proj_weight[q]"] == "4 heads"  # the blocks that are trained with
    assert (tmp_path / "partition_audit.txt").read_text().startswith("parameter")
    assert json.loads((tmp_path / "partition_audit.json").read_text())["findings"]


def test_stops_and_needs_no_other_callback(tmp_path):
    audit = PartitionAudit(partition="tensor", columns=2, examples=4, stop=True, dirpath=tmp_path)
    trainer = fit(TokenModel(), audit)
    assert trainer.global_step == 1
    assert {finding.own.label for finding in audit.audit.findings} == {"tensor"}
    assert pickle.loads(pickle.dumps(audit)).audit is None


def test_mistakes():
    class Manual(TokenModel):
        automatic_optimization = False

    with pytest.raises(MisconfigurationException, match="steps its optimizers itself.*audit_partition"):
        fit(Manual(), PartitionAudit())
    with pytest.raises(MisconfigurationException, match="some seconds, columns and examples"):
        PartitionAudit(columns=0)
