from common.system.errors import did_you_mean


def test_the_nearest_known_word_is_suggested():
    assert did_you_mean("resnet_18", ["resnet50", "resnet18", "vgg11"]) == " - did you mean resnet18?"
    assert did_you_mean("--epoch", iter(["--lr", "--epochs"])) == " - did you mean --epochs?"


def test_nothing_is_suggested_where_no_known_word_is_similar():
    assert did_you_mean("dataset", ["lr", "mixup"]) == did_you_mean("resnet18", []) == ""
