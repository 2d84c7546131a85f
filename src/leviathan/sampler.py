"""Owns the order of packed rows, and of questions that are answered for a reward: another one
each epoch, the same one whenever it is asked for.

Imported only inside the training process, by ``plugin`` and ``callbacks``. Does not pack
rows into batches (Axolotl does): it says in which order, and that every epoch has as many.
"""

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

from torch.utils.data import BatchSampler, RandomSampler, Sampler

from leviathan import packing


class EpochOrder(Sampler[int]):
    """Every row once, in the order of one epoch; each pass moves on to the next epoch.

    It moves on because Axolotl packs four times to learn how few batches an epoch may
    have: four epochs that will be trained tell more than four times the first.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The next pass is of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        numbers = packing.order(self.rows, self.seed, self.epoch)
        self.epoch += 1
        return iter(numbers)


class EpochBatches(BatchSampler):
    """Axolotl's packed batches of one epoch, as many in each epoch and on every rank.

    How many batches a shuffle packs into differs by a few. The Trainer counts once and
    finds its place by that count when it resumes, so an epoch with more is cut (as Axolotl
    does it), and one with fewer begins again with its first ones.
    """

    def __init__(self, packed: Any, rows: EpochOrder) -> None:
        # BatchSampler's own __init__ wants what only Axolotl's sampler knows.
        self.packed, self.sampler = packed, rows
        self.batch_size, self.drop_last = packed.batch_size, packed.drop_last

    def set_epoch(self, epoch: int) -> None:
        """Forget the batches of another epoch; the next pass packs those of this one."""
        self.sampler.set_epoch(epoch)
        self.packed.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.packed)

    def __iter__(self) -> Iterator[Any]:
        wanted = len(self.packed)
        return islice(cycle(self.packed.generate_batches()), wanted)


def install(trainer: Any) -> None:
    """Have ``trainer`` shuffle packed rows by seed and epoch instead of by chance.

    A method of this one trainer is replaced rather than a class given to Axolotl, which
    takes the first class that any plugin names: another plugin's must not undo this one.
    """
    pack = trainer._create_multipack_sampler
    seed = trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed

    def create(base_sampler: Sampler[int], dataset: Any) -> BatchSampler:
        if not isinstance(base_sampler, RandomSampler):  # evaluation, curriculum_sampling
            return pack(base_sampler=base_sampler, dataset=dataset)
        rows = EpochOrder(len(dataset), seed)
        return EpochBatches(pack(base_sampler=rows, dataset=dataset), rows)

    trainer._create_multipack_sampler = create


class EpochGroups(Sampler[int]):
    """TRL's order of questions, each repeated for its answers, in the order of one epoch.

    TRL draws each epoch's order from a generator that is in no checkpoint: a run resumed in its
    second epoch would be asked the first epoch's questions. The first epoch is TRL's own.
    """

    def __init__(self, theirs: Any) -> None:
        self.theirs, self.epoch = theirs, 0

    def set_epoch(self, epoch: int) -> None:
        """The next pass is of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.theirs)

    def __iter__(self) -> Iterator[int]:
        if self.theirs.shuffle:
            self.theirs.generator.manual_seed((self.theirs.seed or 0) + self.epoch)
        return iter(self.theirs)


class GroupOrder:
    """Has a trainer ask its questions in the order of the epoch that it is told."""

    def __init__(self, trainer: Any) -> None:
        self._groups: EpochGroups | None = None
        self._make = trainer._get_train_sampler
        trainer._get_train_sampler = self._sampler

    def _sampler(self, *arguments: Any, **named: Any) -> Any:
        theirs = self._make(*arguments, **named)
        if not hasattr(theirs, "generator") or not hasattr(theirs, "shuffle"):
            return theirs  # not shuffled, or another trainer's
        self._groups = EpochGroups(theirs)
        return self._groups

    def set_epoch(self, epoch: int) -> None:
        """This epoch begins."""
        if self._groups:
            self._groups.set_epoch(epoch)


def batches_of(dataloader: Any) -> EpochBatches | None:
    """The packed batches below what accelerate has wrapped around them."""
    while dataloader is not None and not isinstance(dataloader, EpochBatches):
        dataloader = getattr(dataloader, "batch_sampler", None)
    return dataloader
