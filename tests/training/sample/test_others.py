"""training.sample.others: drawn images of other things."""

import numpy as np

from training.sample.others import KINDS, draw_others


def test_each_kind_is_drawn_in_many_ways_and_the_same_each_time():
    one, other = draw_others(6), draw_others(6)
    assert list(one) == list(KINDS)
    for kind, images in one.items():
        assert [np.asarray(each).tobytes() for each in images] == [
            np.asarray(each).tobytes() for each in other[kind]
        ]
        assert len({image.tobytes() for image in images}) == 6
        assert all(image.mode == "RGB" and min(image.size) >= 200 for image in images)


def test_fewer_are_the_first_of_more():
    more = draw_others(3)
    assert all(np.array_equal(image, more[kind][0]) for kind, [image] in draw_others(1).items())
