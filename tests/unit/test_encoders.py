"""Encoders: raw examples into tensors."""

import numpy as np
import pytest
import torch

from tests.unit.tiny_bert import PIECES, save_tokenizer
from wardround_common.errors import BackboneError, DataError
from wardround_common.modalities.base import (
    IGNORED,
    Examples,
    ImageInputs,
    Inputs,
    Moments,
    TableInputs,
    TextInputs,
    TokenInputs,
)
from wardround_common.modalities.image import ImageEncoder, PixelScale
from wardround_common.modalities.tabular import TableEncoder
from wardround_common.modalities.text import TextEncoder, Tokenizer
from wardround_common.modalities.tokens import TokenEncoder
from wardround_common.spec.data import TabularData

NAN = float("nan")
SCALE = PixelScale((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


def examples(inputs: Inputs, targets: list[list[int]] | None = None) -> Examples:
    given = targets if targets is not None else [[0]] * len(inputs)
    arrays = tuple(np.array(target, dtype=np.int64) for target in given)
    return Examples(inputs, arrays, np.arange(len(inputs), dtype=np.int64))


def table_data(**columns: object) -> TabularData:
    defaults = {
        "modality": "tabular",
        "label": "disease",
        "numeric": ("age", "pressure"),
        "categorical": {"gender": ("f", "m"), "pain": ("none", "some", "severe")},
    }
    return TabularData.model_validate(defaults | columns)


def table(numeric: list[list[float]], categorical: list[list[int]]) -> Examples:
    return examples(TableInputs(np.array(numeric), np.array(categorical, dtype=np.int64)))


def moments(mean: tuple[float, ...] = (50.0, 120.0)) -> Moments:
    return Moments(np.array(mean), np.array([10.0, 20.0]))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.read(save_tokenizer(tmp_path_factory.mktemp("tokenizer")), 0)


def ids(*pieces: str) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


class TestTables:
    def test_standardises_numbers_and_spreads_categories(self) -> None:
        encoder = TableEncoder(table_data(), moments())
        values = encoder.encode(table([[60.0, 100.0]], [[1, 0]])).tensors["values"]
        assert values.dtype == torch.float32
        assert values.tolist() == [[1.0, -1.0, 0.0, 1.0, 1.0, 0.0, 0.0]]
        assert encoder.feature_names == (
            "age", "pressure", "gender=f", "gender=m", "pain=none", "pain=some", "pain=severe",
        )  # fmt: skip

    def test_fills_empty_cells_with_the_mean_and_with_no_category(self) -> None:
        values = TableEncoder(table_data(), moments()).encode(table([[NAN, 140.0]], [[-1, 2]]))
        assert values.tensors["values"].tolist() == [[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]]

    def test_leaves_numbers_alone_without_moments_and_fills_with_zero(self) -> None:
        values = TableEncoder(table_data(), None).encode(table([[61.0, NAN]], [[0, 0]]))
        assert values.tensors["values"][0, :2].tolist() == [61.0, 0.0]

    def test_encodes_a_row_alike_alone_and_among_others(self) -> None:
        rng = np.random.default_rng(7)
        rows = table(rng.normal(size=(9, 2)).tolist(), rng.integers(-1, 2, (9, 2)).tolist())
        encoder = TableEncoder(table_data(), moments((0.1, 0.3)))
        alone = encoder.encode(rows.select(np.array([5])))
        assert torch.equal(alone.tensors["values"][0], encoder.encode(rows).tensors["values"][5])

    def test_takes_tables_of_one_kind_of_column_and_of_no_rows(self) -> None:
        numbers = TableEncoder(table_data(categorical={}), None)
        empty = examples(TableInputs(np.zeros((0, 2)), np.zeros((0, 0), dtype=np.int64)))
        assert numbers.encode(empty).tensors["values"].shape == (0, 2)
        words = TableEncoder(table_data(numeric=()), None)
        assert words.encode(table([[]], [[0, 1]])).tensors["values"].shape == (1, 5)

    @pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e39])
    def test_refuses_a_value_that_float32_cannot_hold_and_names_its_column(
        self, value: float
    ) -> None:
        with pytest.raises(DataError, match="'pressure'") as refused:
            TableEncoder(table_data(), None).encode(table([[60.0, value]], [[0, 0]]))
        assert refused.value.code == "not_finite"

    def test_refuses_a_table_of_other_columns(self) -> None:
        with pytest.raises(DataError, match="declare 2 and 2") as refused:
            TableEncoder(table_data(), None).encode(table([[60.0]], [[0, 0]]))
        assert refused.value.code == "wrong_columns"

    def test_refuses_moments_of_other_columns(self) -> None:
        with pytest.raises(ValueError, match="2 columns"):
            TableEncoder(table_data(), Moments(np.zeros(3), np.ones(3)))

    def test_transform_tells_columns_and_moments_apart(self) -> None:
        encoders = [
            TableEncoder(table_data(), None),
            TableEncoder(table_data(), moments()),
            TableEncoder(table_data(), moments((51.0, 120.0))),
            TableEncoder(table_data(numeric=("pressure", "age")), None),
            TableEncoder(table_data(categorical={"gender": ("m", "f")}), None),
        ]
        assert len({encoder.transform for encoder in encoders}) == len(encoders)
        assert TableEncoder(table_data(), moments()).transform == encoders[1].transform


class TestTexts:
    def test_pads_to_the_longest_of_the_set_and_masks_the_filling(
        self, tokenizer: Tokenizer
    ) -> None:
        texts = TextInputs(("Heart clear", "acetamol"))
        encoded = TextEncoder(tokenizer, 16).encode(examples(texts, [[1], [0]]))
        assert encoded.tensors["input_ids"].tolist() == [
            ids("[CLS]", "heart", "clear", "[SEP]", "[PAD]"),
            ids("[CLS]", "ace", "##tam", "##ol", "[SEP]"),
        ]
        assert encoded.tensors["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1] * 5]
        assert encoded.targets.tolist() == [1, 0]
        assert {tensor.dtype for tensor in encoded.tensors.values()} == {torch.int64}

    def test_cuts_long_texts_and_keeps_the_closing_token(self, tokenizer: Tokenizer) -> None:
        encoded = TextEncoder(tokenizer, 8).encode(examples(TextInputs(("heart " * 50,))))
        assert encoded.tensors["input_ids"].tolist() == [ids("[CLS]", *["heart"] * 6, "[SEP]")]

    def test_an_empty_text_and_an_empty_set_have_rows(self, tokenizer: Tokenizer) -> None:
        encoder = TextEncoder(tokenizer, 16)
        assert encoder.encode(examples(TextInputs(("",)))).tensors["input_ids"].shape == (1, 2)
        assert encoder.encode(examples(TextInputs(()))).tensors["attention_mask"].shape == (0, 1)

    def test_transform_tells_lengths_and_tokenizers_apart(self, tokenizer: Tokenizer) -> None:
        changed = Tokenizer(tokenizer.path, tokenizer.digest[::-1], 0)
        transforms = {
            TextEncoder(tokenizer, 16).transform,
            TextEncoder(tokenizer, 17).transform,
            TextEncoder(changed, 16).transform,
            TokenEncoder(tokenizer, 16).transform,
        }
        assert len(transforms) == 4
        assert str(tokenizer.path) not in "".join(transforms)

    def test_refuses_other_inputs(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(DataError) as refused:
            TextEncoder(tokenizer, 16).encode(examples(TokenInputs((("heart",),))))
        assert refused.value.code == "wrong_modality"

    def test_refuses_a_missing_and_a_damaged_tokenizer(self, tmp_path) -> None:
        with pytest.raises(BackboneError) as missing:
            Tokenizer.read(tmp_path / "tokenizer.json", 0)
        assert missing.value.code == "tokenizer_missing"
        (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
        with pytest.raises(BackboneError) as damaged:
            TextEncoder(Tokenizer.read(tmp_path / "tokenizer.json", 0), 16)
        assert damaged.value.code == "tokenizer_malformed"


class TestTokens:
    def test_puts_a_word_s_tag_on_its_first_piece_only(self, tokenizer: Tokenizer) -> None:
        sentences = TokenInputs((("acetamol", "heart"), ("lung",)))
        encoded = TokenEncoder(tokenizer, 16).encode(examples(sentences, [[1, 2], [3]]))
        assert encoded.tensors["input_ids"].tolist() == [
            ids("[CLS]", "ace", "##tam", "##ol", "heart", "[SEP]"),
            ids("[CLS]", "lung", "[SEP]", "[PAD]", "[PAD]", "[PAD]"),
        ]
        assert encoded.targets.tolist() == [
            [IGNORED, 1, IGNORED, IGNORED, 2, IGNORED],
            [IGNORED, 3, IGNORED, IGNORED, IGNORED, IGNORED],
        ]

    def test_gives_the_same_word_twice_in_a_row_two_targets(self, tokenizer: Tokenizer) -> None:
        sentences = TokenInputs((("acetamol", "acetamol"),))
        encoded = TokenEncoder(tokenizer, 16).encode(examples(sentences, [[1, 2]]))
        assert encoded.targets[0][encoded.targets[0] != IGNORED].tolist() == [1, 2]

    def test_names_the_words_that_were_cut_off_or_have_no_piece(self, tokenizer: Tokenizer) -> None:
        encoder = TokenEncoder(tokenizer, 8)
        sentences = TokenInputs(
            (("a", "acetamol", "acetamol", "heart"), ("\u200b", "lung"), ("a",))
        )
        batch = examples(sentences, [[1, 1, 1, 1], [1, 1], [1]])
        lost = encoder.words_without_target(batch)
        assert [words.tolist() for words in lost] == [[3], [0], []]
        assert encoder.num_words_without_target(batch) == 2
        targets = encoder.encode(batch).targets
        assert (targets != IGNORED).sum().item() == 7 - 2

    def test_cuts_nothing_where_all_pieces_fit(self, tokenizer: Tokenizer) -> None:
        sentences = TokenInputs((("a", "acetamol", "acetamol", "heart"),))
        assert (
            TokenEncoder(tokenizer, 10).num_words_without_target(examples(sentences, [[1] * 4]))
            == 0
        )

    def test_refuses_a_sentence_without_one_tag_a_word(self, tokenizer: Tokenizer) -> None:
        batch = examples(TokenInputs((("heart",), ("lung",))), [[0], [0, 1]])
        with pytest.raises(DataError, match="sentence 2 has 1 words and 2 tags") as refused:
            TokenEncoder(tokenizer, 16).encode(batch)
        assert refused.value.code == "tags_misaligned"

    def test_refuses_other_inputs(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(DataError) as refused:
            TokenEncoder(tokenizer, 16).encode(examples(TextInputs(("heart",))))
        assert refused.value.code == "wrong_modality"


class TestImages:
    def test_keeps_bytes_and_puts_channels_first(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
        encoded = ImageEncoder(8, SCALE).encode(examples(ImageInputs(pixels)))
        assert encoded.tensors["pixels"].dtype == torch.uint8
        assert encoded.tensors["pixels"][1, 2, 3, 4] == pixels[1, 3, 4, 2]

    def test_repeats_a_grey_image_in_three_channels(self) -> None:
        grey = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
        encoded = ImageEncoder(8, SCALE).encode(examples(ImageInputs(grey))).tensors["pixels"]
        three = ImageEncoder(8, SCALE).encode(examples(ImageInputs(grey.repeat(3, axis=3))))
        assert torch.equal(encoded, three.tensors["pixels"])
        assert encoded.untyped_storage().nbytes() == grey.nbytes

    @pytest.mark.parametrize("shape", [(1, 9, 9, 3), (1, 8, 8, 2), (1, 8, 8), (1, 8, 9, 1)])
    def test_refuses_other_sizes_and_channels(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(DataError, match=r"data\.size = 8") as refused:
            ImageEncoder(8, SCALE).encode(examples(ImageInputs(np.zeros(shape, dtype=np.uint8))))
        assert refused.value.code == "wrong_image_shape"

    def test_refuses_pixels_that_are_no_bytes(self) -> None:
        with pytest.raises(DataError, match="float32"):
            ImageEncoder(8, SCALE).encode(
                examples(ImageInputs(np.zeros((1, 8, 8, 3), dtype=np.float32)))  # type: ignore[arg-type]
            )

    def test_transform_tells_size_and_scale_apart(self) -> None:
        other = PixelScale((127.5, 127.0, 127.0), SCALE.deviation)
        wider = PixelScale(SCALE.mean, (128.0, 128.0, 127.0))
        encoders = [ImageEncoder(8, SCALE), ImageEncoder(9, SCALE), ImageEncoder(8, other)]
        transforms = {encoder.transform for encoder in [*encoders, ImageEncoder(8, wider)]}
        assert len(transforms) == 4
