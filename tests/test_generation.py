"""Answers in batches are the answers one by one, on a real tiny model."""

import tiny
from leviathan import generation, models, prompts


def test_a_batch_answers_as_each_alone(tmp_path):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 60)
    tiny.write_model(tmp_path / "base", rows)
    model = models.Model(models.Source(str(tmp_path / "base")))
    texts = ["alpha", "Repeat: beta gamma delta epsilon zeta", "mu nu", "xi " * 30]
    cases = [
        prompts.Case.model_validate(
            {"name": str(at), "prompt": text, "checks": [{"max_length": 9}],
             "max_new_tokens": 5 + 4 * at}
        )
        for at, text in enumerate(texts)
    ]  # fmt: skip
    alone = [generation.answers(model, [case], 1)[0] for case in cases]
    assert generation.answers(model, cases, 4) == alone
    assert generation.answers(model, cases, 3) == alone
    assert len({answer.text for answer in alone}) == len(alone)
