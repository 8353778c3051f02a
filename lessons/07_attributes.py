"""Lesson 7: a direction for a smile.

You will learn to find out what a code knows about a face with a classifier written by hand, to add and remove what has
a name, such as glasses, to keep one attribute from dragging others along, and to move one from face to face.
"""

# %% Settings
from tools.common import add_checkpoint, command_line, encode_all, open_checkpoint, parse, require, spread

import numpy as np

from vae_np.errors import DatasetError
from vae_np.study import pictures
from vae_np.study.logistic import LogisticRegression, area_under_curve, loss_and_gradient
from vae_np.train import to_float

DEFAULT = ["Smiling", "Eyeglasses", "Blond_Hair", "Male", "Heavy_Makeup", "Young"]
parser = command_line(__doc__, "runs/07_attributes")
add_checkpoint(parser)
parser.add_argument("--attributes", nargs="+", metavar="NAME", default=DEFAULT,
                    help="attributes to add, remove and move, each with the others held")
args = parse(parser)
model, info, dataset = open_checkpoint(args.checkpoint, args.data)
for name in args.attributes:
    dataset.column(name)  # says which there are, if it is not one of them


# %% Codes and answers
# Codes here are the means mu of the posteriors. Everything is learned from training faces and judged on held-out ones.
# An attribute that all or none of the faces have can be neither learned nor judged.
def codes_and_answers(split, limit):
    rows = spread(limit, len(dataset.split(split)))
    faces = dataset.split(split)[rows]
    mu, _ = encode_all(model, faces, f"encoding {split} faces")
    return faces, mu.astype(np.float64), dataset.attributes[dataset.splits[split]][rows]


split = dataset.held_out()
require(dataset.split("train"), 20, "training")
require(dataset.split(split), 2, "held-out")
_, train_mu, train_answers = codes_and_answers("train", 10_000)
faces, mu, answers = codes_and_answers(split, 5_000)
train_share, share = train_answers.mean(axis=0), answers.mean(axis=0)
usable = (train_share > 0) & (train_share < 1) & (share > 0) & (share < 1)
column = {name: j for j, name in enumerate(dataset.attribute_names) if usable[j]}
chosen = [name for name in dict.fromkeys(args.attributes) if name in column]
if not chosen:
    raise DatasetError(f"{dataset.folder}: all or none of the faces have {', '.join(args.attributes)}")
print(f"directions for {', '.join(chosen)}")

# %% What does the code know?
# Logistic regression answers from a weighted sum of the code: p = sigmoid(w . mu + b). Its loss is -log p for a face
# that has the attribute and -log(1 - p) for one that has not, averaged over faces. Its gradient, its second derivatives
# and the few steps of Newton's method that lead to the minimum are in vae_np/study/logistic.py. One face at a time:
some, labels = train_mu[:100], train_answers[:100, column[chosen[0]]]
parameters = np.random.default_rng(0).normal(0, 0.1, model.latent_dim + 1)
naive = 0.0
for code, label in zip(some, labels, strict=True):
    p = 1 / (1 + np.exp(-(code @ parameters[:-1] + parameters[-1])))
    naive -= np.log(p if label else 1 - p) / len(some)
assert np.isclose(naive, loss_and_gradient(parameters, some, labels, l2=0)[0]), "the package must give the definition"

# Where 6% of faces wear glasses, who always answers "no" is right in 94% of cases. So accuracy stands beside the
# baseline, the more frequent answer of the training faces, and beside the area under the ROC curve: the probability
# that a face with the attribute scores higher than one without. That is 0.5 for who knows nothing, however rare the
# attribute, and can be computed from ranks. From its definition, by comparing all pairs:
classifiers = {name: LogisticRegression.fit(train_mu, train_answers[:, j]) for name, j in column.items()}
scores, labels = classifiers[chosen[0]].scores(mu), answers[:, column[chosen[0]]]
pairs = np.sign(scores[labels][:, None] - scores[~labels])
assert np.isclose(0.5 + 0.5 * pairs.mean(), area_under_curve(scores, labels))

print(f"{f'{len(mu):,} {split} faces':22s}{'have it':>9s}{'baseline':>10s}{'accuracy':>10s}{'area':>8s}")
results = {}
for name, j in column.items():
    scores = classifiers[name].scores(mu)
    baseline, accuracy = np.mean((train_share[j] > 0.5) == answers[:, j]), np.mean((scores > 0) == answers[:, j])
    results[name] = baseline, accuracy, area_under_curve(scores, answers[:, j])
    print(f"{name:22s}{share[j]:9.1%}{baseline:10.1%}{accuracy:10.1%}{results[name][2]:8.3f}")

names = sorted(results, key=lambda name: results[name][2])
baselines, accuracies, areas = np.array([results[name] for name in names]).T
chart, axes = pictures.figure(columns=2, height=1.2 + 0.2 * len(names))
axes[0, 0].plot(baselines, names, "|", color="black", markersize=9, label="majority baseline")
axes[0, 0].plot(accuracies, names, "o", label="logistic regression from mu")
axes[0, 0].set(xlabel="accuracy on held-out faces")
axes[0, 0].legend(loc="lower left", bbox_to_anchor=(0, 1))
axes[0, 1].plot(areas, names, "o")
axes[0, 1].set(xlabel="area under the ROC curve (chance: 0.5)", yticklabels=[])
for ax in axes[0]:
    ax.grid(alpha=0.3)
pictures.save_figure(args.out / "classifiers.png", chart)

# %% A direction
# The simplest direction of an attribute is the mean code of the faces that have it, minus that of the others (Larsen et
# al. 2016). But smiles are more frequent in women's photographs, so the direction of a smile holds some of a woman's
# face, and of whatever else comes along. White (2016) balances the groups before taking means. Least squares does it
# for many attributes at once: describe each code as
#
#     mu = c + sum_k a_k d_k + rest,      a_k = 1 for a face that has attribute k, otherwise 0
#
# with the directions D = (d_k) that leave the least rest. For centred A (faces x attributes) and M (faces x latents),
# the derivative of |M - A D|^2 vanishes where A^T A D = A^T M. With a single attribute of share p, A^T A = N p (1 - p)
# and A^T M = N p (1 - p) (mean with - mean without): D is the difference of means. With more, what smiles share with
# women is credited to whichever of the two explains it: d_k is what k changes while the others named stay as they are.
def directions(attributes):
    a = train_answers[:, [column[name] for name in attributes]].astype(np.float64)
    return np.linalg.lstsq(a - a.mean(axis=0), train_mu - train_mu.mean(axis=0), rcond=None)[0]


differences, corrected = np.concatenate([directions([name]) for name in chosen]), directions(chosen)
for name, difference in zip(chosen, differences, strict=True):
    have = train_answers[:, column[name]]
    assert np.allclose(difference, train_mu[have].mean(axis=0) - train_mu[~have].mean(axis=0))


# %% What comes along?
# Add a direction to every code and ask all classifiers: by how much does the mean of their scores move, in deviations
# of that score over held-out faces? The diagonal is what was meant.
def print_effects(title, shifts):
    print(f"{title:32s}" + "".join(f"{name[:12]:>13s}" for name in chosen))
    for name, shift in zip(chosen, shifts, strict=True):
        effects = [shift @ classifiers[other].weight / classifiers[other].scores(mu).std() for other in chosen]
        print(f"{f'  + {name}':32s}" + "".join(f"{effect:13.2f}" for effect in effects))


print_effects("difference of means, moves", differences)
print_effects("corrected, moves", corrected)

# %% Does the picture carry it?
# A code can be pushed anywhere; does the decoder draw it? Decode, encode the picture again ("redrawn" below), and ask
# there. How many held-out faces without the attribute are said to have it, as they are and with the corrected direction
# added? How far must their mean code go until the answer turns: in directions, and in deviations of codes along it?
#
# To move an attribute from a source to a target, give the target the source's component along d. How much of d is in a
# code? Not its dot product with d, to which everything else that varies along d adds; the classifier's weight w is
# made to ignore that. Read with w and write with d (Haufe et al. 2014 say why the two differ). The target then scores
# as its source does; whether the picture does, too, is to be seen:
def transfer(source, target, direction, weight):
    amount = (source - target) @ weight / (direction @ weight)
    return target + amount[:, None] * direction


def draw(codes):
    return model.decode(codes.astype(np.float32))


print("held-out faces without the attribute: the shift that turns the answer, and how many are said to have it\n"
      f"{'':18s}{'directions':>11s}{'deviations':>12s}{'as is':>9s}{'redrawn':>9s}{'+ 1':>9s}{'redrawn':>9s}"
      f"{'moved':>9s}{'redrawn':>9s}")
strengths, correction, transfers, moves = [], [], [], []
for name, difference, direction in zip(chosen, differences, corrected, strict=True):
    classifier, label = classifiers[name], answers[:, column[name]]
    have, others = np.flatnonzero(label), np.flatnonzero(~label)
    targets = others[spread(100, len(others))]
    sources = have[np.arange(len(targets)) % len(have)]
    moved = transfer(mu[sources], mu[targets], direction, classifier.weight)
    assert np.allclose(classifier.scores(moved), classifier.scores(mu[sources])), "the component must be the source's"
    ways = (mu[targets], mu[targets] + direction, moved)
    redrawn = [model.encode(draw(codes))[0] for codes in ways]
    moves.append((redrawn[1] - redrawn[0]).mean(axis=0))
    shift = -classifier.scores(mu[others]).mean() / (direction @ classifier.weight)
    deviations = shift * (direction @ direction) / (mu @ direction).std()
    yes = [np.mean(classifier.scores(codes) > 0) for pair in zip(ways, redrawn, strict=True) for codes in pair]
    print(f"{name:18s}{shift:11.2f}{deviations:12.2f}" + "".join(f"{part:9.0%}" for part in yes))

    for word, which in (("without", others), ("with", have)):
        shown = which[len(which) * np.array([1, 2]) // 3]
        groups = [np.concatenate([to_float(faces[i][None]), draw(mu[i] + np.arange(-2, 3)[:, None] * direction)])
                  for i in shown]
        strengths.append((f"{name}\n{word}: face,\n-2 -1 0 +1 +2", *groups))
    shown = spread(4, len(targets))
    groups = [draw(mu[targets[i]] + 1.5 * np.stack([0 * direction, difference, direction])) for i in shown]
    correction.append((f"{name}\nas is, + 1.5 mean,\n+ 1.5 corrected", *groups))
    groups = [np.concatenate([to_float(faces[[sources[i], targets[i]]]), draw(np.stack([mu[targets[i]], moved[i]]))])
              for i in shown[:3]]
    transfers.append((f"{name}\nsource, target,\nas is, moved", *groups))
print_effects("corrected, in the picture, moves", moves)
for file, rows in (("strengths.png", strengths), ("correction.png", correction), ("transfer.png", transfers)):
    pictures.save(args.out / file, pictures.labelled_rows(rows))
print(f"{args.out}/classifiers.png, strengths.png, correction.png, transfer.png")

# %% What you should see
# The first table: glasses, hats, beards, blond hair and sex are read with an area near 1; on toy faces a smile, a few
# pixels wide, nearer to 0.7, however high the accuracy where an attribute is rare (a smile on CelebA: 0.95). The
# effects: as a difference of means, heavy makeup moves the answer for Male by -1.0 deviations on toy faces, by -1.3 on
# CelebA; corrected, by -0.1 and -0.5. Directions are corrected, not the judges: one that knows makeup from women takes
# all that is male for a sign against it, and one that reads poorly, as of toy smiles, is moved by much else. In
# strengths.png, one direction of glasses puts on thin ones, two thick ones, and minus two draws bright skin where
# glasses would be: a direction is a straight line, and faces end where it goes on. Blond hair bleaches skin and
# background along, or darkens them. The last table: of what is added to a code, most arrives in the picture, and is
# read there again: nearly all of the glasses, three quarters of Male, three fifths of what is known of a smile. What
# the code hardly holds, such as a toy smile, no direction adds to a picture. A shift below 0 would say that the mean of
# the faces without it is said to have it.
#
# Exercises
# 1. Correct for everything (--attributes with all names). Which directions shrink, and which names are near-synonyms?
# 2. Move with dot products instead: (source - target) @ direction / (direction @ direction). How many are still moved?
# 3. Fit the classifiers to 100 training faces, with l2 of 1e-3 and 1. What do accuracy and area say on either side?
