"""Whether a finished result is filed where its job says: the last look before it is frozen.

The conformance gate compares a result with the images as they are on the disk now. Here it is
compared with what the ledger noted when they arrived, so that files which were exchanged since,
or a job that was given another study's images, make no result for a wrong patient.
"""

from __future__ import annotations

from node.dicom.headers import read_facts
from node.domain.errors import IdentityError
from node.domain.patient import agree, patient_key
from node.domain.study import Study


def refuse_stranger(content: bytes, study: Study) -> None:
    """Raises IdentityError unless a result's bytes name the study's UID and its patient.

    ``content`` is a whole Part 10 object; ``study`` is as the ledger has it.
    """
    facts = read_facts(content)
    if facts.get("StudyInstanceUID") != study.uid:
        raise IdentityError(
            "a result object names another study than its job: it is held back. See whether the "
            "spool was changed by hand"
        )
    key = patient_key(facts)
    if not all(agree(key, patient_key(instance.facts)) for instance in study.instances):
        raise IdentityError(
            f"a result object names another patient than the images of {study.uid} did when they "
            "arrived: it is held back. See whether the spool was changed by hand"
        )
