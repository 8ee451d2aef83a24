"""What a retrain did, in words: each stage's part of the summary, from the results of its manifests."""

from typing import Any


def of_stage(stage: str, ended: dict[str, Any]) -> str:
    """Return what came of a stage; `ended` is the summary's result."""
    drift, verdict = ended["drift"], ended["verdict"]
    if stage == "watch":
        return "no champion yet" if drift is None else f"drifted: {', '.join(drift['drifted_parts']) or 'nothing'}"
    if stage == "probe":
        return _expectation(ended["probe"])
    if stage == "signals":
        cost = f"{ended['signals']['bought_tokens']} tokens bought, {ended['signals']['reused_tokens']} reused"
        aligned = (ended.get("alignment") or {}).get("told", "")
        return "; ".join(filter(None, [cost, _mixed(ended.get("mixture")), aligned]))
    if stage == "judge":
        means = "; ".join(f"{name}: {_pair(values)}" for name, values in verdict["exact_match"].items())
        told = f"{verdict['outcome']}. exact match {means}"
        errors = verdict.get("teacher_errors")
        return f"{told}. teacher-error set, {errors['rows']} rows: {_pair(errors)}" if errors else told
    others = {
        "train": training(ended.get("training") or {}),
        "register": f"version {ended['challenger']}",
        "bento": "; ".join(filter(None, [ended["bento"], _small(ended.get("int8") or {})])),
        "approval": _approval(ended.get("approval") or {}),
        "profile": "the new reference",
        "promote": f"champion is version {ended['champion']}",
    }
    return others[stage]


def _small(numbers: dict[str, float]) -> str:
    """Return in words how 8-bit weights do beside the checkpoint's own; empty where there are none."""
    told = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items())
    return f"8-bit weights beside the checkpoint: {told}" if told else ""


def _approval(said: dict[str, Any]) -> str:
    """Return in words what a person said; empty where nobody was asked."""
    if not said:
        return ""
    note = f": {said['note']}" if said["note"] else ""
    return f"{'approved' if said['approved'] else 'refused'} by {said['by']} at {said['at']}{note}"


def _mixed(mixture: dict[str, Any] | None) -> str:
    """Return in words what became of the rows; empty for a retrain of a version that did not say."""
    counted = (mixture or {}).get("outcomes") or {}
    kinds = {
        "trained": "trained",
        "duplicate": "duplicates",
        "quarantined": "quarantined",
        "held": "held for the teacher-error set",
    }
    sums = {kind: sum(n for name, n in counted.items() if name.startswith(kind)) for kind in kinds}
    return ", ".join(f"{n} {kinds[kind]}" for kind, n in sums.items() if n)


def training(came: dict[str, Any]) -> str:
    """Return in words which step's weights the student has, what validation said, and how many rows had no step."""
    missed = came.get("rows", {}).get("not_reached", 0)  # a retrain of an earlier version did not say
    unseen = f"; {missed} rows were in no step: {came['not_reached_because']}" if missed else ""
    unseen += _on_policy(came.get("on_policy"))
    if came.get("validation_loss") is None:
        return f"a new student after {came['steps']} steps{unseen}" if came else "a new student"
    early = ", stopped early" if came["stopped_early"] else ""
    return (
        f"a new student: step {came['exported_step']} of {came['steps']} by validation loss "
        f"{came['validation_loss']:.4f}{early}{unseen}"
    )


def _on_policy(came: dict[str, Any] | None) -> str:
    """Return in words what the student said itself; empty where it learned from the teacher's answers alone."""
    if not came:
        return ""
    return (
        f"; {came['own_rows']} answers of its own in {came['rounds']} rounds, {came['mean_tokens']:.1f} tokens each "
        f"({came['empty_share']:.0%} empty, {came['cut_share']:.0%} cut), scored by the teacher"
    )


def _expectation(probe: dict[str, Any]) -> str:
    """Return in words what the probe saw and expected, and what came true."""
    from monitoring.probe import told as numbers

    loss, true = probe["window_loss"], probe["came_true"]
    parts = [f"agreement with the teacher {_percent(probe['now']['drifted'])}"]
    parts += [f"{_percent(probe['now']['rest'])} elsewhere"] if probe["now"]["rest"] else []
    parts += [f"was {_percent(probe['before'])}"] if probe["before"] else []
    seen = f"{', '.join(parts)}: loss {loss['low']:.2f} to {loss['high']:.2f}. expected {numbers(probe['expected'])}"
    return f"{seen}; came true {numbers(true)}" if true else seen


def _percent(agreement: dict[str, int]) -> str:
    return f"{agreement['agreed'] / agreement['rows']:.0%}"


def _pair(values: dict[str, float]) -> str:
    if "champion" in values:
        return f"{values['champion']:.3f} -> {values['challenger']:.3f}"
    return f"{values['challenger']:.3f}"


def reason(outcome: str, found: dict[str, Any], retrain_id: str) -> str:
    """Return why a retrain ended so; `found` has the stages' results."""
    if "judge" in found and outcome != "promoted":
        verdict = f"verdict {found['judge']['outcome']}: {found['judge']['reason']}"
        if "approval" in found:
            return f"{_approval(found['approval'])}; {verdict}"
        waits = f"; a person may approve it: python -m flows.retrain --approve {retrain_id}"
        return verdict + (waits if outcome == "held" else "")
    if "probe" in found and not found["probe"]["pays"]:
        return str(found["probe"]["reason"])
    return str(found["watch"]["reason"])
