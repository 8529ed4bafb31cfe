"""Personal data that no pattern finds, such as names: Microsoft Presidio over a spaCy model. Needs the extra `pii`."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.recipe import Presidio


def named(text: str, section: Presidio) -> list[tuple[str, int, int]]:
    """What Presidio finds in a text, as (kind, start, end), the kind in lower case. Raises UserError if it, the model
    or one of the entities is not there."""
    engine = _engine(section.model, section.language)
    known = engine.get_supported_entities(section.language)
    for entity in section.entities:
        if entity not in known:
            raise UserError(
                f"filter.presidio.entities: Presidio finds no {entity} with the model {section.model}, only "
                f"{', '.join(sorted(known))}."
            )
    found = engine.analyze(
        text,
        section.language,
        entities=section.entities,
        score_threshold=section.min_score,
        return_decision_process=False,
    )
    return [(one.entity_type.lower(), one.start, one.end) for one in found]


@cache
def _engine(model: str, language: str) -> Any:
    try:
        import spacy
        import tldextract.tldextract
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError:
        raise UserError(
            "filter.presidio needs a package that is not installed. Run: pip install 'seqkd[pii]'"
        ) from None
    if not (spacy.util.is_package(model) or Path(model).is_dir()):  # else Presidio would download it
        raise UserError(
            f"filter.presidio.model: no spaCy model {model} is installed, and no such folder is there. Run: python -m "
            f"spacy download {model}"
        )
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)  # it warns of each language that it leaves out
    # The list of top-level domains that it has is enough; it would ask the network for a newer one.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
    models = [{"lang_code": language, "model_name": model}]
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
    try:
        return AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=[language])
    except (OSError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"filter.presidio.model: {model} cannot be opened ({said}).") from None
