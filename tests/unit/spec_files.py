"""A small good federation file and site file, as text, for the tests of files and commands."""

FEDERATION = """\
# who takes part
[federation]
name = "heart"
sites = ["cleveland", "budapest"]
seed = 7

[data]
modality = "tabular"
label = "num"
numeric = ["age", "chol"]
validation_fraction = 0.2
[data.categorical]
sex = ["f", "m"]
[data.label_map]
"0" = "healthy"
"1" = "disease"

[task]
kind = "classification"
labels = ["healthy", "disease"]

[training]
local_epochs = 2
class_weights = [1, 2.5]
[training.optimizer]
name = "sgd"
learning_rate = 1

[rounds]
count = 3
quorum_sites = 2

[aggregation]
rule = "fedprox"
mu = 0.1

[simulation]
dataset = "heart"
[simulation.partition]
kind = "dirichlet"
alpha = 0.3
"""

SITE = """\
name = "cleveland"
[data]
format = "csv"
path = "heart.csv"
[data.rename]
target = "num"
"""


def changed(old: str, new: str, text: str = FEDERATION) -> str:
    """The good file with one passage replaced."""
    assert text.count(old) == 1, f"{old!r} is in the file {text.count(old)} times"
    return text.replace(old, new)
