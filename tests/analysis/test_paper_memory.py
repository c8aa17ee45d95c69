"""The paper's memory figures from the architectures, and the arithmetic in what is said of the differences."""

from __future__ import annotations

import pytest

from lightning_adam_mini.analysis.paper_memory import PAPER_MODELS, PaperComparison, compare_with_paper

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def comparisons() -> dict[str, PaperComparison]:
    return {model.name: compare_with_paper(model) for model in PAPER_MODELS}


def test_parameter_counts_are_the_published_ones(comparisons):
    counts = {name: c.memory.elements for name, c in comparisons.items()}
    assert counts == {
        "GPT2-1.5B": 1_557_611_200 + (50_304 - 50_257) * 1600,  # OpenAI's, with nanoGPT's vocabulary
        "TinyLlama-1B": 1_100_048_384,
        "Llama2-7B": 6_738_415_616,
        "Llama2-13B": 13_015_864_320,
        "Llama3-8B": 8_030_261_248,
        "Phi-3": 3_821_079_552,
        "Gemma-7B": 8_537_680_896,
    }


@pytest.mark.parametrize("name", ["GPT2-1.5B", "TinyLlama-1B", "Llama2-7B"])
def test_table_1_within_half_a_percent(comparisons, name):
    c = comparisons[name]
    assert c.gigabytes("AdamW") == pytest.approx(c.model.adamw, rel=0.005)
    assert c.gigabytes("AdamMini", "adam_mini_v1") == pytest.approx(c.model.adam_mini, rel=0.005)
    assert c.saved("adam_mini_v1") == pytest.approx(c.model.saved, abs=0.1)


def test_version_1_keeps_the_embedding_and_next_to_nothing_else(comparisons):
    for c in comparisons.values():
        elsewhere = c.memory.state("AdamMini", "adam_mini_v1").second_moments - c.embedding
        assert 0 < elsewhere < 1e-5 * c.memory.elements


def test_version_2_saves_almost_half_of_each(comparisons):
    assert all(49.95 < c.saved("adam_mini") < 50 for c in comparisons.values())


def test_the_readings_give_the_papers_figures(comparisons):
    embedding = {name: c.embedding / 1e9 for name, c in comparisons.items()}
    assert f"{8 * 1.56:.2f}" == "12.48"
    assert f"{4 * 1.56 + 4 * embedding['GPT2-1.5B']:.2f}" == "6.56"
    assert f"{comparisons['GPT2-1.5B'].embedding_share:.2f}" == "5.17"
    assert f"{8 * 6.74:.2f}" == "53.92"
    assert f"{53.92 * (1 - 0.4804):.2f}" == "28.02"
    assert f"{100 * 0.52 / 4.40:.1f}" == "11.8"
    assert f"{100 * 2 * 32_000 * 4000 / 6.74e9:.2f}" == "3.80"
    assert f"{100 * embedding['Llama2-7B'] / 13:.2f}" == "2.02"
    assert f"{100 * embedding['Phi-3'] / 3.8:.2f}" == "5.18"
    assert f"{100 * embedding['Gemma-7B'] / 8.0:.2f}" == "9.83"
    assert f"{comparisons['Llama3-8B'].embedding_share:.0f}" == "13"


def test_every_difference_is_explained():
    for model in PAPER_MODELS:
        assert model.embedding_note or model.embedding is None
        assert model.state_note or model.adamw is None


def test_galore_mini_is_the_paper_s():
    pytest.importorskip("transformers", reason="transformers is not installed")
    comparison = compare_with_paper(next(model for model in PAPER_MODELS if model.galore_rank))
    assert comparison.galore is not None
    adamw, galore, mini, apart = comparison.galore
    assert adamw == comparison.memory.state("AdamW").total
    # By hand: of 4 attention and 3 MLP matrices a layer both moments, or the first, at rank 1024, and the projections.
    projected = 32 * (4 * 4096 + 3 * 11_008) * 1024
    projections = 32 * 7 * 4096 * 1024
    vectors = 65 * 4096
    assert galore == 4 * (2 * projected + projections + 2 * (2 * 32_000 * 4096 + vectors) + 291)
    assert apart == pytest.approx(4 * (projected + projections), rel=1e-3)
    assert 1 - mini / galore == pytest.approx(0.40, abs=0.005)
    assert 1 - apart / adamw == pytest.approx(0.81, abs=0.005)
