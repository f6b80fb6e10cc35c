"""Secrets and personal data in text: found, counted by kind, masked; never shown.

Takes text or files; gives findings (kind and place), masked text or counts. A value that was found
is in no message, log or report. What is found, and how well, is in docs/scanner.md.

- `rules`: what a rule is; `secret_rules`, `personal_rules`, `phones`: the rules.
- `prefilter`, `escapes`: which rules a text may match; what it says without JSON's escapes.
- `scanner`: all rules over one text; `json_text`: JSON that is masked and stays JSON.
- `files`: the texts inside files of any kind; `tables`: rows in files, masked."""

from hubkit.sensitive_data.files import FileFindings, scan_file, scan_files, scan_folder
from hubkit.sensitive_data.rules import Finding
from hubkit.sensitive_data.scanner import KINDS, PERSONAL, SECRETS, Masker, mask, scan_text

__all__ = [
    "KINDS",
    "PERSONAL",
    "SECRETS",
    "FileFindings",
    "Finding",
    "Masker",
    "mask",
    "scan_file",
    "scan_files",
    "scan_folder",
    "scan_text",
]
