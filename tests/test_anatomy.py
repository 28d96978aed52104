"""The codes are those of the standard, and a name that says nothing is marked."""

from __future__ import annotations

import pytest
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from node.anatomy import colour, meaning, structures

# Value -> every meaning that pydicom's copy of the standard has for it.
KNOWN: dict[str, set[str]] = {}
for entries in concepts["SCT"].values():
    for value, (words, _) in entries.items():
        KNOWN.setdefault(value, set()).add(words.partition(" (")[0].lower())


@pytest.mark.parametrize("name", sorted(structures()))
def test_code_has_its_meaning_in_the_standard(name: str) -> None:
    value, words = structures()[name]
    assert words.lower() in KNOWN[value]


def test_categories_are_of_the_context_group() -> None:
    group = {(code.value, code.meaning) for code in _group("CID7150")}
    for name in ("liver", "pancreatic tumor", "no such thing"):
        assert meaning(name).category in group


def _group(name: str) -> list[Code]:
    members = getattr(codes, name).dir()
    return [getattr(getattr(codes, name), member) for member in members]


@pytest.mark.parametrize(
    ("name", "type_", "side"),
    [
        ("liver", "Liver", ""),
        ("kidney_right", "Kidney", "Right"),
        ("Left Kideny", "Kidney", "Left"),
        ("adrenal_gland_left", "Adrenal gland", "Left"),
        ("lung_upper_lobe_left", "Upper lobe of lung", "Left"),
        ("lung_middle_lobe_right", "Middle lobe of right lung", ""),
        ("heart_atrium_left", "Left atrium", ""),
        ("rv_pool", "Right ventricle", ""),
        ("vertebrae_T12", "T12 vertebra", ""),
        ("vertebrae_C1", "C1 vertebra", ""),
        ("rib_left_10", "Rib", "Left"),
        ("IVC", "Inferior vena cava", ""),
        ("urinary_bladder", "Bladder", ""),
        ("peripheral zone", "Peripheral zone of the prostate", ""),
        ("portal_vein_and_splenic_vein", "Portal vein", ""),
        ("Lungs", "Lung", ""),
    ],
)
def test_names_of_published_models_are_understood(name: str, type_: str, side: str) -> None:
    found = meaning(name)
    assert found.type[1] == type_
    assert (found.laterality[1] if found.laterality else "") == side
    assert found.whole


def test_name_that_is_misspelt_is_read_and_marked() -> None:
    assert meaning("Left Kideny").doubt == "read as kidney"
    assert meaning("Left Kidney").doubt == ""


@pytest.mark.parametrize(
    ("name", "context", "type_", "site"),
    [
        ("pancreatic tumor", "", "Neoplasm", "Pancreas"),
        ("Enhancing tumor", "Brain Tumor segmentation", "Neoplasm", "Brain"),
        ("renal cyst", "abdomen", "Cyst", "Kidney"),
        ("lung nodule", "", "Nodule", "Lung"),
        ("oedema", "brain MR", "Edema", "Brain"),
        ("lesion", "", "Lesion", ""),
    ],
)
def test_lesion_lies_in_the_organ_that_is_spoken_of(
    name: str, context: str, type_: str, site: str
) -> None:
    found = meaning(name, context)
    assert found.category[1] == "Morphologically Abnormal Structure"
    assert found.type[1] == type_
    assert (found.site[1] if found.site else "") == site
    assert not found.whole


def test_unknown_name_gets_the_most_general_code_and_a_mark() -> None:
    found = meaning("autochthonous thing 7")
    assert found.type == ("85756007", "Tissue")
    assert "no code is known for 'autochthonous thing 7'" in found.doubt
    assert meaning("vertebrae_L9").type[1] == "Vertebra" or meaning("vertebrae_L9").doubt


def test_rows_are_those_of_a_manifest() -> None:
    assert meaning("kidney right").rows() == {
        "category": {"value": "91723000", "scheme": "SCT", "meaning": "Anatomical Structure"},
        "type": {"value": "64033007", "scheme": "SCT", "meaning": "Kidney"},
        "laterality": {"value": "24028007", "scheme": "SCT", "meaning": "Right"},
    }


def test_colours_are_allowed_and_differ() -> None:
    colours = [colour(number) for number in range(105)]
    for lightness, a, b in colours:
        assert 0 <= lightness <= 100
        assert -128 <= a <= 127
        assert -128 <= b <= 127
    assert len({tuple(one) for one in colours}) > 100
