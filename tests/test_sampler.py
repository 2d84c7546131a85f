"""The order of packed rows, through Axolotl's packing and what accelerate wraps around it."""

import gc
import itertools
from types import SimpleNamespace

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from axolotl.utils.samplers import MultipackBatchSampler
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from transformers import TrainerControl, TrainerState, TrainingArguments
from trl.trainer.utils import RepeatSampler

from leviathan import packing, sampler
from leviathan.callbacks import EpochCallback, GroupsCallback, TokensCallback

ROWS, EPOCHS = 400, 3
LENGTHS = [10 + row * row * 7 % 91 for row in range(ROWS)]


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections():
    """Axolotl collects garbage after each packing: half a second with all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


class Rows:
    """A dataset of row numbers, asked for a bin of rows at a time, as Hugging Face's can be."""

    def __len__(self):
        return ROWS

    def __getitem__(self, rows):
        return tuple(rows)


class Trainer:
    """As much of Axolotl's trainer as asks for a sampler."""

    args = SimpleNamespace(seed=42, data_seed=None)

    def _create_multipack_sampler(self, base_sampler, dataset):
        packed = MultipackBatchSampler(
            base_sampler, batch_size=1, batch_max_len=128, lengths=LENGTHS,
            bin_size=200, num_processes=1,
        )  # fmt: skip
        len(packed)
        return packed


def packed(base=RandomSampler):
    trainer = Trainer()
    sampler.install(trainer)
    return trainer._create_multipack_sampler(base_sampler=base(Rows()), dataset=Rows())


def loader(processes=1, rank=0):
    """What the Trainer iterates over on one rank."""
    made = DataLoader(Rows(), batch_sampler=packed(), collate_fn=itertools.chain.from_iterable)
    return prepare_data_loader(
        made, num_processes=processes, process_index=rank, even_batches=False
    )


def epoch_of(dataloader, epoch, skip=0):
    """One epoch's batches, in the calls of the Trainer's ``_run_epoch``."""
    state = TrainerState(epoch=epoch + skip / 1000)
    EpochCallback().on_epoch_begin(None, state, TrainerControl(), train_dataloader=dataloader)
    if skip:
        dataloader = skip_first_batches(dataloader, skip)
    dataloader.set_epoch(epoch)
    return [tuple(batch) for batch in dataloader]


def test_the_global_random_state_neither_counts_nor_changes():
    torch.manual_seed(1)
    first, state = list(packed()), torch.get_rng_state()
    torch.manual_seed(2)
    assert list(packed()) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_epoch_is_another_order_of_as_many_batches(processes):
    ranks = [loader(processes, rank) for rank in range(processes)]
    epochs = [[epoch_of(rank, epoch) for rank in ranks] for epoch in range(EPOCHS)]
    assert {len(batches) for epoch in epochs for batches in epoch} == {len(ranks[0])}
    assert len({str(epoch) for epoch in epochs}) == EPOCHS
    for ranks_batches in epochs:
        rows = [row for batches in ranks_batches for batch in batches for row in batch]
        assert len(rows) == len(set(rows))  # no row twice, on no two ranks


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("epoch", range(EPOCHS))
@pytest.mark.parametrize("skip", [0, 7])
def test_a_resumed_epoch_goes_on_with_the_very_batches(processes, epoch, skip):
    whole = loader(processes, processes - 1)
    wanted = [epoch_of(whole, number) for number in range(EPOCHS)]
    resumed = loader(processes, processes - 1)
    assert epoch_of(resumed, epoch, skip) == wanted[epoch][skip:]
    for later in range(epoch + 1, EPOCHS):
        assert epoch_of(resumed, later) == wanted[later]


@pytest.mark.parametrize("packs", [[5, 3, 4], [3, 5, 4]])
def test_an_epoch_with_other_batches_than_counted_is_cut_or_filled(packs):
    class Packed:
        batch_size, drop_last = 1, True
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 4

        def generate_batches(self):
            return list(range(packs[self.epoch]))

    batches = sampler.EpochBatches(Packed(), sampler.EpochOrder(1, 1))
    for epoch, count in enumerate(packs):
        batches.set_epoch(epoch)
        assert list(batches) == [*range(count), *range(4)][:4] if count < 4 else [0, 1, 2, 3]


def test_axolotls_count_is_of_epochs_that_will_be_trained():
    rows = sampler.EpochOrder(20, 42)
    assert [list(rows) for _ in range(3)] == [packing.order(20, 42, n) for n in range(3)]


def test_evaluation_and_curriculum_sampling_keep_axolotls_own_order():
    assert isinstance(packed(SequentialSampler), MultipackBatchSampler)


def test_packing_that_is_not_ours_is_not_trained_on():
    """Silently inexact would be worse: a later Axolotl may make its batches elsewhere."""
    theirs = DataLoader(range(4))
    with pytest.raises(RuntimeError, match="would see other batches"):
        EpochCallback().on_epoch_begin(
            None, TrainerState(), TrainerControl(), train_dataloader=theirs
        )


def test_tokens_are_counted_one_by_one_beyond_what_a_float_holds(tmp_path):
    state = TrainerState()
    TokensCallback().on_train_begin(TrainingArguments(tmp_path), state, TrainerControl())
    for kind in ("total", "trainable"):
        counted = state.tokens[kind] + torch.tensor(2**24) + torch.tensor(1)
        assert int(counted.item()) == 2**24 + 1
    state.tokens = restored = {"total": torch.tensor(5), "trainable": torch.tensor(3)}
    TokensCallback().on_train_begin(TrainingArguments(tmp_path), state, TrainerControl())
    assert state.tokens is restored


# --- questions that are answered for a reward ------------------------------------------------


class Asking:
    """As much of TRL's trainer as asks for a sampler: 10 questions, 2 answers each, by threes."""

    def __init__(self, shuffle=True):
        self.shuffle = shuffle

    def _get_train_sampler(self, dataset=None):
        return RepeatSampler(range(10), 2, batch_size=3, shuffle=self.shuffle, seed=42)


def questions(order, made, epoch):
    order.set_epoch(epoch)
    return list(made)


def test_each_epoch_has_an_order_of_questions_of_its_own_whenever_it_is_asked_for():
    trainer = Asking()
    theirs = list(trainer._get_train_sampler())
    order = sampler.GroupOrder(trainer)
    made = trainer._get_train_sampler()
    epochs = [questions(order, made, epoch) for epoch in range(3)]
    assert epochs[0] == theirs  # TRL's own
    assert len(made) == len(theirs) == 18
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(epoch[::2] == epoch[1::2] for epoch in epochs)
    resumed = Asking()
    other = sampler.GroupOrder(resumed)
    assert questions(other, resumed._get_train_sampler(), 2) == epochs[2]


def test_a_resume_skips_what_was_asked_of_its_epoch_only():
    trainer = Asking()
    order = sampler.GroupOrder(trainer)
    made = trainer._get_train_sampler()
    whole = questions(order, made, 1)
    skipped = skip_first_batches(DataLoader(range(10), batch_size=6, sampler=made), 1)
    callback = GroupsCallback(order.set_epoch)
    callback.on_epoch_begin(None, TrainerState(epoch=1.4), TrainerControl())
    assert [number for batch in skipped for number in batch.tolist()] == whole[6:]


def test_questions_in_the_order_of_the_file_are_left_alone():
    trainer = Asking(shuffle=False)
    theirs = list(trainer._get_train_sampler())
    order = sampler.GroupOrder(trainer)
    assert questions(order, trainer._get_train_sampler(), 1) == theirs
