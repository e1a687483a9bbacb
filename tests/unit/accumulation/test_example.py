"""What goes through the model for an example: itself, or its parts."""

from hf_accum.accumulation.example import OF_ONES_OWN, TOKENS, Example, Lengths, inputs_of


def test_a_pair_goes_through_the_model_as_its_texts_and_all_else_as_itself() -> None:
    query, document = Example("0:0/0", 3, 1.0, {}), Example("0:0/1", 5, 1.0, {})
    pair = Example("0:0", 8, 1.0, {}, parts=(query, document))
    text = Example("0:1", 4, 1.0, {})
    assert inputs_of([pair, text]) == [query, document, text]
    assert inputs_of([]) == []


def test_a_length_is_said_where_there_is_one_and_flags_where_there_are_flags() -> None:
    assert TOKENS.of(1) == " of 1 tokens"
    assert Lengths("patches", "resolution").of(49) == " of 49 patches"
    assert (OF_ONES_OWN.of(7), OF_ONES_OWN.of(1)) == (" of 7 tokens", "")
    assert "`lora.rank`" in TOKENS.what_needs_less
    assert "`resolution`" in Lengths("patches", "resolution").what_needs_less
    assert "`" not in OF_ONES_OWN.what_needs_less
