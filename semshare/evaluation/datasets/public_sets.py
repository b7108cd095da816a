"""The papers' sets: how a record of each is read, what is asked about it and how it is scored.

Prompts, answer limits and metrics of `multi_news`, `qasper`, `samsum` and `lcc` are LongBench's
(Bai et al., ACL 2024, MIT licence), of the other sets in its manner. Two things differ: `samsum`
comes without LongBench's examples of other dialogues, and `lcc` within the model's chat template.

| set | fields of a record (other names) |
| --- | --- |
| `multi_news` | document (context) · summary (answers) |
| `xsum` | document · summary |
| `wikihow` | text · headline |
| `samsum` | dialogue · summary |
| `qasper` | context, input · answers, as in LongBench |
| `pubmed` | article (article_text) · abstract (abstract_text) |
| `booksum` | chapter (text) · summary (summary_text) |
| `big_patent` | description · abstract |
| `lcc` | context · answers, as in LongBench |
| `mmlu` | question, choices · answer, a letter or a number from 0 |
| `cnn_dailymail` | article · highlights |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from semshare.evaluation import prompts
from semshare.evaluation.datasets.base import TaskMetric
from semshare.evaluation.datasets.records import Hub, Record
from semshare.evaluation.material import Messages

CHOICES = "ABCD"

_LETTERS: dict[int | str, str] = dict(enumerate(CHOICES)) | {letter: letter for letter in CHOICES}
_OUTLINE = "List the main points of the following text."
_NEWS_BREAK = "|||||"  # between the articles of a `multi_news` document


@dataclass(frozen=True, slots=True)
class Sample:
    """What a record says, whatever its fields are called."""

    document: str
    references: tuple[str, ...]  # good answers, the gold one first
    question: str = ""


@dataclass(frozen=True, slots=True)
class PublicSet:
    """A published set.

    name:       of the dataset and of the user's file.
    about:      one line.
    hub:        where the `datasets` package has it.
    read:       record → sample; raises `InvalidRequest` that names file, line and field.
    template:   the prompt, with places for {context} and {input}.
    metric, max_tokens: as in `Dataset`.
    otherwise:  the other instruction of the scenario `instruction`.
    """

    name: str
    about: str
    hub: Hub
    read: Callable[[Record], Sample]
    template: str
    metric: TaskMetric = "rouge_l"
    max_tokens: int = 512
    otherwise: str = _OUTLINE

    def ask(self, document: str, question: str) -> Messages:
        """The set's own prompt."""
        return prompts.user(self.template.format(context=document, input=question))

    def ask_otherwise(self, document: str) -> Messages:
        """The same document under another instruction."""
        return prompts.user(self.otherwise, document)


def _summary(record: Record, documents: tuple[str, ...], summaries: tuple[str, ...]) -> Sample:
    return Sample(record.text(documents), (record.text(summaries),))


def _multi_news(record: Record) -> Sample:
    text = record.text(("document", "context"))
    articles = [article.strip() for article in text.split(_NEWS_BREAK)]
    return Sample("\n\n".join(filter(None, articles)), record.texts(("summary", "answers")))


def _qasper(record: Record) -> Sample:
    return Sample(record.text(("context",)), record.texts(("answers",)), record.text(("input",)))


def _lcc(record: Record) -> Sample:
    return Sample(record.text(("context",)), record.texts(("answers",)))


def _mmlu(record: Record) -> Sample:
    choices, answer = record.texts(("choices",)), record.field(("answer",))
    if len(choices) != len(CHOICES):
        raise record.malformed(("choices",), list(choices), "a list of four texts")
    letter = _LETTERS.get(answer) if type(answer) in (int, str) else None
    if letter is None:
        raise record.malformed(("answer",), answer, "a letter from A to D or a number from 0 to 3")
    lines = [record.text(("question",)), *map("{}. {}".format, CHOICES, choices)]
    return Sample("\n".join(lines), (letter,))


def _summarize(what: str, kind: str, length: str) -> str:
    """A prompt in the manner of LongBench's `gov_report`."""
    return (
        f"You are given {what}. Write {length} summary of the {kind}.\n\n"
        f"{kind.capitalize()}:\n{{context}}\n\n"
        f"Now, write {length} summary of the {kind}.\n\nSummary:"
    )


_QASPER_TASK = (
    "Answer the question{} as concisely as you can, using a single phrase or sentence if possible. "
    "If the question cannot be answered based on the information in the article, write "
    '"unanswerable". If the question is a yes/no question, answer "yes", "no", or "unanswerable". '
    "Do not provide any explanation."
)

PUBLIC_SETS = (
    PublicSet(
        "multi_news",
        "several news articles, one summary (Fabbri et al., ACL 2019)",
        Hub("alexfabbri/multi_news"),
        _multi_news,
        "You are given several news passages. Write a one-page summary of all news. \n\n"
        "News:\n{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:",
    ),
    PublicSet(
        "wikihow",
        "how-to articles (Koupaee and Wang, 2018)",
        Hub("wikihow", "all"),
        partial(_summary, documents=("text",), summaries=("headline",)),
        _summarize("instructions for a task", "instructions", "a short"),
        max_tokens=128,
    ),
    PublicSet(
        "samsum",
        "chats between friends (Gliwa et al., 2019)",
        Hub("Samsung/samsum"),
        partial(_summary, documents=("dialogue",), summaries=("summary",)),
        "Summarize the dialogue into a few short sentences.\n\nDialogue: {context}\n\nSummary:",
        max_tokens=128,
    ),
    PublicSet(
        "qasper",
        "questions about NLP papers (Dasigi et al., NAACL 2021), in LongBench's form",
        Hub("THUDM/LongBench", "qasper"),
        _qasper,
        "You are given a scientific article and a question. "
        + _QASPER_TASK.format("")
        + "\n\nArticle: {context}\n\n "
        + _QASPER_TASK.format(" based on the above article")
        + "\n\nQuestion: {input}\n\nAnswer:",
        metric="token_f1",
        max_tokens=128,
    ),
    PublicSet(
        "pubmed",
        "medical articles and their abstracts (Cohan et al., NAACL 2018)",
        Hub("ccdv/pubmed-summarization"),
        partial(
            _summary,
            documents=("article", "article_text"),
            summaries=("abstract", "abstract_text"),
        ),
        _summarize("a scientific article", "article", "a one-page"),
    ),
    PublicSet(
        "booksum",
        "chapters of novels (Kryściński et al., 2022)",
        Hub("kmfoda/booksum"),
        partial(_summary, documents=("chapter", "text"), summaries=("summary", "summary_text")),
        _summarize("a chapter of a book", "chapter", "a one-page"),
    ),
    PublicSet(
        "big_patent",
        "patents and their abstracts (Sharma et al., ACL 2019)",
        Hub("NortheasternUniversity/big_patent", "all"),
        partial(_summary, documents=("description",), summaries=("abstract",)),
        _summarize("the description of a patent", "description", "a one-page"),
    ),
    PublicSet(
        "lcc",
        "the next line of code (Guo et al., ICML 2023), in LongBench's form",
        Hub("THUDM/LongBench", "lcc"),
        _lcc,
        "Please complete the code given below. \n{context}Next line of code:\n",
        metric="edit_similarity",
        max_tokens=64,
        otherwise="Explain what the following code does.",
    ),
    PublicSet(
        "mmlu",
        "questions with four choices, no examples (Hendrycks et al., ICLR 2021)",
        Hub("cais/mmlu", "all"),
        _mmlu,
        "The following is a multiple choice question. Answer with its letter alone.\n\n"
        "{context}\n\nAnswer:",
        metric="accuracy",
        max_tokens=8,
        otherwise="Explain what the following question is about.",
    ),
    PublicSet(
        "cnn_dailymail",
        "news articles and their highlights (Nallapati et al., 2016)",
        Hub("abisee/cnn_dailymail", "3.0.0"),
        partial(_summary, documents=("article",), summaries=("highlights",)),
        _summarize("a news article", "article", "a short"),
        max_tokens=128,
    ),
    PublicSet(
        "xsum",
        "news articles, one sentence each (Narayan et al., EMNLP 2018)",
        Hub("EdinburghNLP/xsum"),
        partial(_summary, documents=("document",), summaries=("summary",)),
        _summarize("a news article", "article", "a one-sentence"),
        max_tokens=64,
    ),
)
