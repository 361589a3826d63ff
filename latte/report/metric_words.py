"""Metrics in words: their names in a sentence, their titles, what they are, and what they are not."""

import re

# Networks by the word that names of values have for them, and what they read.
_NETWORKS = {"i3d": ("I3D", "clips"), "inception": ("Inception v3", "frames"), "videomae": ("VideoMAE", "clips")}
_NAME = re.compile(rf"(frechet|kernel)_(random_|small_)?({'|'.join(_NETWORKS)})((?:_pool|_logits)?)(_[0-9a-f]{{8}})?")
# What a distance in features is.
_DISTANCES = {
    "frechet": (
        "Fréchet distance",
        "each set summed up by the mean and covariance of its features. Lower is better; zero means that the two sets "
        "cannot be told apart.",
    ),
    "kernel": (
        "Kernel distance",
        "the squared maximum mean discrepancy under a polynomial kernel. Lower is better. The estimate has no bias at "
        "any number of clips, so that it can fall below zero where the two sets are alike.",
    ),
}
# metric: (name in a sentence, title, what it is)
_KNOWN = {
    "fvd": (
        "FVD",
        "Fréchet video distance (FVD)",
        "The Fréchet video distance (Unterthiner et al. 2018): the distance between the features of real and of "
        "generated clips, both read by an I3D network trained on Kinetics-400. Lower is better; zero means that the "
        "two sets cannot be told apart.",
    ),
    "kvd": (
        "KVD",
        "Kernel video distance (KVD)",
        "The kernel video distance (Unterthiner et al. 2018): the squared maximum mean discrepancy between the "
        "features that FVD compares. Lower is better. It has no bias at any number of clips, so that it can fall "
        "below zero where the two sets are alike.",
    ),
    "fid": (
        "FID",
        "Fréchet inception distance of frames (FID)",
        "The Fréchet inception distance (Heusel et al. 2017) over all frames of the clips: the distance between the "
        "features of real and of generated frames, both read by Inception v3. Lower is better. It sees single frames "
        "and no motion.",
    ),
    "kid": (
        "KID",
        "Kernel inception distance of frames (KID)",
        "The kernel inception distance (Binkowski et al. 2018) over all frames of the clips: the squared maximum mean "
        "discrepancy between the features that FID compares. Lower is better. It sees single frames and no motion, has "
        "no bias at any number of clips, and can fall below zero where the two sets are alike.",
    ),
    "frechet_random_i3d": (
        "Fréchet distance",
        "Fréchet distance in random I3D features",
        "The distance between the features of real and of generated clips, each set summed up by the mean and "
        "covariance of its features. Lower is better; zero means that the two sets cannot be told apart.",
    ),
    "frechet_small_i3d": (
        "Fréchet distance",
        "Fréchet distance in the features of a small I3D",
        "The distance between the class scores of real and of generated clips, both read by a small I3D that was "
        "trained for such clips. Lower is better; zero means that the two sets cannot be told apart.",
    ),
    "frechet_i3d_pool": (
        "Fréchet distance",
        "Fréchet distance in pooled I3D features",
        "The Fréchet distance between real and generated clips in the 1024 pooled channels of an I3D network trained "
        "on Kinetics-400. Lower is better. It is not the published FVD, which reads the network's 400 class scores.",
    ),
}
_NO_SUCH = {
    "i3d": "It is no FVD: other ports of I3D give other features for the same clips.",
    "inception": "It is no FID, which reads frames with one published file.",
    "videomae": "It compares only with numbers of the same weights.",
}
_NOTES = {
    ("small_", "i3d"): (
        "This is not FVD. FVD reads clips with an I3D network trained on Kinetics-400; this distance comes from a "
        "smaller network, which knows what it was trained on and nothing else. Compare it only with numbers of the "
        "same detector and protocol."
    ),
    ("random_", "i3d"): (
        "This is not FVD. FVD reads clips with an I3D network trained on Kinetics-400, and this run was given no such "
        "weights: its I3D has seeded random ones. Random convolutions still respond to colour, texture and motion, so "
        "that the number tells noise from video. It does not rank models, and may not be compared with FVD of any "
        "paper, nor with this distance under another protocol or another seed."
    ),
}


def named(metric: str) -> tuple[str, str, str]:
    """A metric in words: its name in a sentence, its title, what it is."""
    name = _NAME.fullmatch(metric)
    if metric in _KNOWN or name is None:
        return _KNOWN.get(metric, (metric, metric, "Lower is better."))
    distance, size, kind, _, digest = name.groups()
    (short, what), (network, read) = _DISTANCES[distance], _NETWORKS[kind]
    of = {"random_": f"random {network} features", "small_": f"features of a small {network}"}
    other = f"features of another {network}" if kind != "videomae" else f"{network} features"
    text = f"The distance between the features of real and of generated {read}, {what}"
    if digest is not None:
        text += f" {_NO_SUCH[kind]}"
    return short, f"{short} in {of.get(size, other)}", text


def note(metric: str) -> str | None:
    """A warning on a value that is easily taken for another one; None where there is nothing to warn of."""
    name = _NAME.fullmatch(metric)
    if name is None or name[2] is None:
        return None
    network = _NETWORKS[name[3]][0]
    others = {
        "small_": f"This comes from a small {network}, which knows what it was trained on and nothing else. Compare it "
        "only with numbers of the same detector and protocol.",
        "random_": f"The {network} of this run has seeded random weights. The number tells noise from video; it does "
        "not rank models, and compares only with numbers of the same seed and protocol.",
    }
    text = _NOTES.get((name[2], name[3]), others[name[2]])
    return text.replace("FVD", "KVD") if name[1] == "kernel" else text
