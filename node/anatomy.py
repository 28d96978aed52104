"""What the label of a trained model means in codes, as far as its name says it.

Models name what they find in words of their own: ``kidney_right``, ``pancreatic tumor``. Results
need coded concepts (PS3.16 CID 7150 and those below it). This table has the structures that
published models know; whatever else there is gets the most general code and a mark.
"""

from __future__ import annotations

import colorsys
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ANATOMY = ("91723000", "Anatomical Structure")
_ABNORMAL = ("49755003", "Morphologically Abnormal Structure")
_TISSUE = ("85756007", "Tissue")

_SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}
"""CID 244."""

_STRUCTURES: dict[str, tuple[str, str]] = {
    "adipose tissue": ("55603005", "Fat"),
    "adrenal gland": ("23451007", "Adrenal gland"),
    "airway": ("89187006", "Airway structure"),
    "amygdala": ("4958002", "Amygdala"),
    "aorta": ("15825003", "Aorta"),
    "artery": ("51114001", "Artery"),
    "autochthon": ("44947003", "Erector spinae muscle"),
    "bladder": ("89837001", "Bladder"),
    "bone": ("272673000", "Bone"),
    "brain": ("12738006", "Brain"),
    "brain stem": ("119238007", "Brain Stem"),
    "breast": ("76752008", "Breast"),
    "bronchus": ("955009", "Bronchus"),
    "cardiac muscle": ("122448007", "Cardiac muscle"),
    "carotid artery": ("69105007", "Carotid Artery"),
    "cartilage": ("309312004", "Cartilage"),
    "caudate nucleus": ("11000004", "Caudate Nucleus"),
    "cerebellum": ("113305005", "Cerebellum"),
    "clavicle": ("51299004", "Clavicle"),
    "colon": ("71854001", "Colon"),
    "coronary artery": ("41801008", "Coronary artery"),
    "duodenum": ("38848004", "Duodenum"),
    "esophagus": ("32849002", "Esophagus"),
    "eye": ("81745001", "Eye"),
    "face": ("89545001", "Face"),
    "femoral head": ("2812003", "Femoral head"),
    "femur": ("71341001", "Femur"),
    "gallbladder": ("28231008", "Gallbladder"),
    "gray matter": ("389081007", "Gray Matter"),
    "heart": ("80891009", "Heart"),
    "hip": ("29836001", "Hip"),
    "hippocampus": ("5366008", "Hippocampus"),
    "humerus": ("85050009", "Humerus"),
    "iliac artery": ("10293006", "Iliac artery"),
    "iliac vein": ("244411005", "Iliac vein"),
    "inferior vena cava": ("64131007", "Inferior vena cava"),
    "kidney": ("64033007", "Kidney"),
    "large intestine": ("14742008", "Large intestine"),
    "left atrium": ("82471001", "Left atrium"),
    "left ventricle": ("87878005", "Left ventricle"),
    "liver": ("10200004", "Liver"),
    "lobe of lung": ("31094006", "Lobe of lung"),
    "lower lobe of lung": ("90572001", "Lower lobe of lung"),
    "lung": ("39607008", "Lung"),
    "lymph node": ("59441001", "Lymph Node"),
    "mandible": ("91609006", "Mandible"),
    "middle lobe of lung": ("72481006", "Middle lobe of right lung"),
    "optic nerve": ("18234004", "optic nerve"),
    "ovary": ("15497006", "Ovary"),
    "pancreas": ("15776009", "Pancreas"),
    "parenchyma": ("91772007", "Parenchyma"),
    "parotid gland": ("45289007", "Parotid gland"),
    "patella": ("64234005", "Patella"),
    "peripheral zone of prostate": ("279706003", "Peripheral zone of the prostate"),
    "portal vein": ("32764006", "Portal vein"),
    "prostate": ("41216001", "Prostate"),
    "pulmonary artery": ("81040000", "Pulmonary artery"),
    "pulmonary vein": ("122972007", "Pulmonary vein"),
    "putamen": ("89278009", "Putamen"),
    "rectum": ("34402009", "Rectum"),
    "renal artery": ("2841007", "Renal artery"),
    "renal vein": ("56400007", "Renal vein"),
    "rib": ("113197003", "Rib"),
    "right atrium": ("73829009", "Right atrium"),
    "right ventricle": ("53085002", "Right ventricle"),
    "sacrum": ("54735007", "Sacrum"),
    "scapula": ("79601000", "Scapula"),
    "seminal vesicle": ("64739004", "Seminal Vesicle"),
    "skeletal muscle": ("127954009", "Skeletal muscle"),
    "skin": ("39937001", "Skin"),
    "skull": ("89546000", "Skull"),
    "small intestine": ("30315005", "Small intestine"),
    "spinal cord": ("2748008", "Spinal cord"),
    "spleen": ("78961009", "Spleen"),
    "splenic vein": ("35819009", "Splenic vein"),
    "sternum": ("56873002", "Sternum"),
    "stomach": ("69695003", "Stomach"),
    "submandibular gland": ("54019009", "Submandibular gland"),
    "superior vena cava": ("48345005", "Superior vena cava"),
    "thalamus": ("42695009", "Thalamus"),
    "thyroid": ("69748006", "Thyroid"),
    "tibia": ("12611008", "Tibia"),
    "trachea": ("44567001", "Trachea"),
    "transition zone of prostate": ("399384005", "Transition zone of the prostate"),
    "upper lobe of lung": ("45653009", "Upper lobe of lung"),
    "ureter": ("87953007", "Ureter"),
    "urethra": ("13648007", "Urethra"),
    "uterus": ("35039007", "Uterus"),
    "vein": ("29092000", "Vein"),
    "vertebra": ("51282000", "Vertebra"),
    "white matter": ("389080008", "White Matter"),
}

_VERTEBRAE = {
    "c": ("14806007", "39976000", "113205007", "5329002", "36978003", "36054005", "87391001"),
    "t": (
        "64864005", "53733008", "1626008", "73071006", "56401006", "45296009",
        "62487009", "11068009", "82687006", "7610001", "12989004", "23215003",
    ),
    "l": ("66794005", "14293000", "36470004", "11994002", "49668003"),
}  # fmt: skip

_ABNORMALITIES: tuple[tuple[re.Pattern[str], tuple[str, str]], ...] = (
    (re.compile(r"metasta"), ("128462008", "Metastasis")),
    (re.compile(r"tumou?r|neoplas|cancer|carcinoma|glioma"), ("108369006", "Neoplasm")),
    (re.compile(r"nodule"), ("27925004", "Nodule")),
    (re.compile(r"cyst(?!ic duct)"), ("367643001", "Cyst")),
    (re.compile(r"o?edema"), ("79654002", "Edema")),
    (re.compile(r"necro"), ("6574001", "Necrosis")),
    (re.compile(r"ha?emorrhage|bleed|ha?ematoma"), ("50960005", "Hemorrhage")),
    (re.compile(r"pleural effusion"), ("60046008", "Pleural effusion")),
    (re.compile(r"pericardial effusion"), ("373945007", "Pericardial effusion")),
    (re.compile(r"thromb"), ("396339007", "Thrombus")),
    (re.compile(r"embol"), ("55584005", "Embolus")),
    (re.compile(r"aneurysm"), ("85659009", "aneurysm")),
    (re.compile(r"\bmass\b"), ("4147007", "Mass")),
    (re.compile(r"lesion|infarct|plaque|opacit|abnormal"), ("52988006", "Lesion")),
)

_OTHER_WORDS: dict[str, str] = {
    "oesophagus": "esophagus", "urinary bladder": "bladder", "gall bladder": "gallbladder",
    "ivc": "inferior vena cava", "svc": "superior vena cava", "postcava": "inferior vena cava",
    "portal vein and splenic vein": "portal vein", "portal and splenic veins": "portal vein",
    "small bowel": "small intestine", "clavicula": "clavicle", "iliac vena": "iliac vein",
    "heart myocardium": "cardiac muscle", "myocardium": "cardiac muscle",
    "heart atrium": "atrium", "heart ventricle": "ventricle", "lv pool": "left ventricle",
    "rv pool": "right ventricle", "lung upper lobe": "upper lobe of lung",
    "lung lower lobe": "lower lobe of lung", "lung middle lobe": "middle lobe of lung",
    "upper lobe": "upper lobe of lung", "lower lobe": "lower lobe of lung",
    "middle lobe": "middle lobe of lung", "peripheral zone": "peripheral zone of prostate",
    "transition zone": "transition zone of prostate", "brainstem": "brain stem",
    "fat": "adipose tissue", "muscle": "skeletal muscle", "adrenal": "adrenal gland",
    "thyroid gland": "thyroid", "bowel": "small intestine", "grey matter": "gray matter",
}  # fmt: skip
"""What published models call some of these structures."""

_ADJECTIVES = {
    "pancreatic": "pancreas", "hepatic": "liver", "renal": "kidney", "pulmonary": "lung",
    "prostatic": "prostate", "cerebral": "brain", "splenic": "spleen", "mammary": "breast",
    "colonic": "colon", "cardiac": "heart", "brats": "brain", "glioma": "brain",
}  # fmt: skip

_GOLDEN = 0.618


@dataclass(frozen=True, slots=True)
class Meaning:
    """The codes of a label, and ``doubt``: why they are a guess, empty where they are none."""

    category: tuple[str, str]
    type: tuple[str, str]
    site: tuple[str, str] | None = None
    laterality: tuple[str, str] | None = None
    doubt: str = ""

    @property
    def whole(self) -> bool:
        """Whether all voxels are one finding, as of an organ; of lesions each part is one."""
        return self.category != _ABNORMAL

    def rows(self) -> dict[str, Mapping[str, str]]:
        """The codes as a manifest writes them."""
        codes = {
            "category": self.category,
            "type": self.type,
            "site": self.site,
            "laterality": self.laterality,
        }
        return {key: _code(code) for key, code in codes.items() if code is not None}


def meaning(name: str, context: str = "") -> Meaning:
    """The meaning of a label by its name; ``context`` says what the model is about.

    The context gives a lesion the organ that it lies in.
    """
    words = _words(name)
    for pattern, code in _ABNORMALITIES:
        if pattern.search(words):
            return Meaning(_ABNORMAL, code, _site(words) or _site(_words(context)))
    side = next((side for side in _SIDES if side in words.split()), "")
    vertebra = _vertebra(words)
    if vertebra is not None:
        return Meaning(_ANATOMY, vertebra)
    key, doubt = _structure(words, side)
    if not key:
        return Meaning(_TISSUE, _TISSUE, doubt=f"no code is known for {name!r}")
    sided = side and not key.startswith(side) and key != "middle lobe of lung"
    laterality = _SIDES[side] if sided else None
    return Meaning(_ANATOMY, _STRUCTURES[key], laterality=laterality, doubt=doubt)


def colour(number: int) -> list[float]:
    """A display colour for the n-th label, CIELab, far from those of its neighbours."""
    red, green, blue = colorsys.hls_to_rgb((number * _GOLDEN) % 1, 0.5, 0.7)
    a = 90 * (red - green)
    b = 60 * ((red + green) / 2 - blue)
    return [round(45 + 40 * green + 10 * red, 1), round(a, 1), round(b, 1)]


def _code(code: tuple[str, str]) -> Mapping[str, str]:
    return {"value": code[0], "scheme": "SCT", "meaning": code[1]}


def _words(name: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9]+", " ", name.lower()).split())


def _site(words: str) -> tuple[str, str] | None:
    """The organ that a text names first."""
    for word in words.split():
        key = _ADJECTIVES.get(word, _OTHER_WORDS.get(word, word))
        if key in _STRUCTURES:
            return _STRUCTURES[key]
    return None


def _vertebra(words: str) -> tuple[str, str] | None:
    match = re.search(r"\b([ctl])(\d{1,2})\b", words) if "vertebra" in words else None
    if match is None:
        return None
    number, codes = int(match[2]), _VERTEBRAE[match[1]]
    if not 1 <= number <= len(codes):
        return None
    return (codes[number - 1], f"{match[1].upper()}{number} vertebra")


def _structure(words: str, side: str) -> tuple[str, str]:
    """The key of a structure, and why it is a guess."""
    plain = " ".join(w for w in words.split() if w not in _SIDES and not w.isdigit())
    plain = _OTHER_WORDS.get(plain, plain)
    for key in (f"{side} {plain}", plain, plain.removesuffix("s"), plain.removesuffix("e")):
        if key in _STRUCTURES:
            return key, ""
    close = difflib.get_close_matches(plain, _STRUCTURES, n=1, cutoff=0.8) if len(plain) > 4 else ()
    return (close[0], f"read as {close[0]}") if close else ("", "")


def structures() -> Mapping[str, Any]:
    """Every structure of the table: name -> (code value, meaning), all of SNOMED CT."""
    vertebrae = {
        f"{letter}{number} vertebra": (code, f"{letter.upper()}{number} vertebra")
        for letter, codes in _VERTEBRAE.items()
        for number, code in enumerate(codes, 1)
    }
    abnormal = {code[1]: code for _, code in _ABNORMALITIES}
    return {**_STRUCTURES, **vertebrae, **abnormal}
