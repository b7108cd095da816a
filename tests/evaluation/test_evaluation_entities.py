from semshare.evaluation.entities import Faithfulness, faithfulness, names, numbers


def test_numbers_are_whole_and_not_parts_of_words() -> None:
    text = "In 2019, 1,024 units (3.5%, 1,2 and 10-fold) of GPT2 beat the 2nd at v1.2 by 1,234,567."
    assert numbers(text) == ["2019", "1024", "3.5", "1,2", "10", "1234567"]


def test_names_are_capitalised_inside_of_a_sentence() -> None:
    text = (
        'The work of Ada Lovelace. She wrote "Notes"; I read it\nTwice in Paris: Good, says GPT2.'
    )
    assert names(text) == ["Ada", "Lovelace", "Notes", "Paris", "GPT2"]
    assert names("Paris is large . London is , too") == []
    assert names("at 0.05 Reed stops") == ["Reed"]  # that point ends no sentence


def test_faithful_shares_count_distinct_names_and_numbers() -> None:
    prompt = "Reed met 12 people in Oslo. Oslo had 30 guests."
    answer = "There, Reed met 12 of 31 people, and Reed then saw Novak in Oslo, says Marie."
    # Names Reed, Novak, Oslo, Marie: two of four. Numbers 12, 31: one of two.
    expected = Faithfulness(numbers=0.5, entities=0.5, leak=False)
    assert faithfulness(answer, prompt, []) == expected
    assert faithfulness(answer, prompt, ["Reed went to Bergen."]) == expected
    assert faithfulness(answer, prompt, ["", "Novak stayed."]).leak  # begins the donor's sentence
    assert faithfulness(answer, prompt, ["31 guests"]).leak


def test_title_case_makes_nothing_up() -> None:
    found = faithfulness("A Novel Approach", "a novel approach", ["a novel by Reed"])
    assert found == Faithfulness(None, 1.0, False)


def test_what_the_answer_lacks_has_no_share() -> None:
    assert faithfulness("nothing to see", "Reed, 12", ["Novak"]) == Faithfulness(None, None, False)
    assert faithfulness("it was 12", "twelve", []) == Faithfulness(0.0, None, False)
