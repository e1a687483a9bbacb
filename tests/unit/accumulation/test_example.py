"""What goes through the model for an example: itself, or its parts."""

from hf_accum.accumulation.example import Example, inputs_of


def test_a_pair_goes_through_the_model_as_its_texts_and_all_else_as_itself() -> None:
    query, document = Example("0:0/0", 3, 1.0, {}), Example("0:0/1", 5, 1.0, {})
    pair = Example("0:0", 8, 1.0, {}, parts=(query, document))
    text = Example("0:1", 4, 1.0, {})
    assert inputs_of([pair, text]) == [query, document, text]
    assert inputs_of([]) == []
