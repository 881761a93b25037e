"""The growing index against brute force, with shared beginnings and several rows."""

import random

from specdec.datastore.growing import NOWHERE, GrowingIndex, KnownText, shared_beginning


def known(index, text):
    one = KnownText(list(text), 0)
    one.follow(index)
    return one


def find(index, text, last=NOWHERE, most=100, length=4, matched=8):
    found = index.find(text, last, 0, most=most, length=length, matched=matched)
    return [
        (agreed, [token for token in row if token >= 0])
        for agreed, row in zip(found.matched.tolist(), found.continuations.tolist(), strict=True)
    ]


def brute_force(texts, end, length, matched):
    found = []
    for text in texts:
        for place in range(len(text) - 1):
            agreed = 0
            while agreed < min(matched, len(end), place + 1) and text[place - agreed] == end[-1 - agreed]:  # fmt: skip
                agreed += 1
            if agreed:
                found.append((agreed, text[place + 1 : place + 1 + length]))
    return sorted(found)


def test_matches_and_continuations_equal_brute_force_while_texts_grow():
    generator, index = random.Random(0), GrowingIndex()
    rows = [KnownText([generator.randrange(4)], 0) for _ in range(3)]
    for _ in range(60):
        for row in rows:  # in turn, as rows of a batch do
            row.text += [generator.randrange(4) for _ in range(generator.randrange(4))]
            row.follow(index)
        end = [generator.randrange(4) for _ in range(5)]
        assert sorted(find(index, end, most=10_000)) == brute_force(
            [r.text for r in rows], end, 4, 8
        )


def test_longer_matches_come_first_then_the_latest():
    index = GrowingIndex()
    text = [1, 2, 3, 7, 9, 2, 3, 8, 9, 3, 6, 1, 2, 3]
    last = known(index, text).last
    assert [row[0] for _, row in find(index, text, last, most=3)] == [7, 8, 6]


def test_end_of_the_text_does_not_match_itself():
    index = GrowingIndex()
    text = known(index, [1, 2, 3])
    assert find(index, text.text, text.last) == []


def test_repetition_that_reaches_the_end_is_continued():
    index = GrowingIndex()
    text = known(index, [5, 1, 2, 1, 2])
    assert find(index, text.text, text.last, length=6)[0] == (2, [1, 2, 1, 2, 1, 2])


def test_texts_share_their_common_beginning():
    index = GrowingIndex()
    first = known(index, [1, 2, 3, 4, 5])
    size = index.size
    second = KnownText([1, 2, 3, 9, 9], 1)
    second.part_from(first)
    second.follow(index)
    assert index.size == size + 2
    assert find(index, [3, 9], length=3)[0] == (2, [9])
    assert (2, [5]) in find(index, [3, 4], length=3)
    assert find(index, [2, 3, 9], matched=8)[0][0] == 3  # back over the parting


def test_rolled_back_text_is_known_up_to_its_new_end():
    index = GrowingIndex()
    first = known(index, [1, 2, 3, 4])
    second = KnownText([1, 2], 1)
    second.part_from(first)
    assert second.places == first.places[:2]
    second.follow(index)
    second.text += [6, 7]
    second.follow(index)
    assert find(index, [2, 6], length=2)[0] == (2, [7])


def test_matches_in_other_texts_are_marked():
    index = GrowingIndex()
    first, other, again = (KnownText(text, number) for number, text in enumerate(([1, 2, 3], [7, 2, 4, 2], [1, 2, 3, 5])))  # fmt: skip
    for text in (first, other):
        text.follow(index)
    found = index.find(other.text, other.last, other.number, most=9, length=1, matched=8)
    assert dict(zip(found.continuations[:, 0].tolist(), found.own.tolist(), strict=True)) == {4: True, 3: False}  # fmt: skip
    again.part_from(first)
    assert again.number == first.number  # most of it is
    other.part_from(first)
    assert other.number == 1


def test_shared_beginning_is_counted():
    assert shared_beginning([], [1]) == 0
    assert shared_beginning([1, 2, 3], [1, 2, 4, 5]) == 2
    assert shared_beginning([1, 2], [1, 2, 4]) == 2
    assert shared_beginning([2], [1]) == 0
