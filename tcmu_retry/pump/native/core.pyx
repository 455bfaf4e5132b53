# cython: language_level=3, boundscheck=False, embedsignature=False
"""What Python sees of ring.c and loop.c. Types: core.pyi."""

import os
from time import monotonic

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from tcmu_retry.tcmu.ring import CommandEntry, RingError, TaskManagementEntry, layout


cdef extern from "ring.h" nogil:
    cdef enum ring_op:
        OP_PAD
        OP_CMD
        OP_TMR

    cdef enum ring_fault:
        RING_SOUND
        RING_HEAD
        RING_TAIL
        RING_ENTRY
        RING_COMMAND
        RING_BUFFER
        RING_TMR
        RING_EMPTY

    cdef struct ring:
        uint8_t *memory
        uint64_t length
        uint32_t offset
        uint32_t size
        uint32_t next
        uint64_t a, b, c
        uint8_t *journal
        uint32_t journal_room

    cdef struct ring_iov:
        uint64_t offset
        uint64_t length

    cdef struct ring_entry:
        ring_op op
        uint32_t length
        uint16_t id
        uint8_t kind
        uint32_t count
        uint32_t cdb_length
        uint64_t data_length
        const ring_iov *iovs
        const uint8_t *cdb
        const uint16_t *ids

    bint ring_unfetched(const ring *)
    ring_fault ring_find_head(ring *, uint32_t *)
    ring_fault ring_look(ring *, uint32_t, uint32_t, ring_entry *)
    void ring_pass(ring *, const ring_entry *)
    void ring_refuse(ring *, uint32_t)
    ring_fault ring_complete(ring *, uint16_t, uint8_t, const uint8_t *, uint32_t, bint)
    ring_fault ring_settle(ring *)
    uint32_t *ring_tail(const ring *)


cdef extern from "journal.h" nogil:
    void journal_open(const ring *, const ring_entry *, double)


cdef extern from "plain.h" nogil:
    cdef enum plain_op:
        PLAIN_NOT
        PLAIN_READ
        PLAIN_WRITE
        PLAIN_FLUSH

    cdef struct plain_disk:
        uint32_t block_size
        uint64_t blocks
        uint32_t maximum
        bint writable

    cdef struct plain_request:
        plain_op op
        bint fua
        uint64_t offset
        uint64_t length

    plain_op plain_read(const uint8_t *, uint32_t, uint64_t, const plain_disk *, plain_request *)


cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "<stdatomic.h>" nogil:
    ctypedef struct atomic_uint_fast64_t:
        pass
    uint64_t atomic_load(atomic_uint_fast64_t *)
    void atomic_store(atomic_uint_fast64_t *, uint64_t)


cdef extern from "shelf.h" nogil:
    cdef struct shelf:
        uint8_t *memory
        int file
        uint64_t size, room, start, next, number, flushed, limit, promised

    cdef struct shelf_mark:
        uint64_t number


cdef extern from "loop.h" nogil:
    cdef struct slot:
        atomic_uint_fast64_t serial
        plain_request request
        double began
        uint8_t *cdb
        uint32_t cdb_length
        uint32_t number
        uint16_t id
        bint handed_over
        uint32_t iov_count
        iovec *iovs
        shelf_mark mark
        bint waits

    cdef struct loop:
        ring ring
        int uio
        int bell
        int wake
        int storage
        plain_disk disk
        uint8_t *excluding
        shelf shelf
        bint hold
        bint flushing
        uint64_t serial
        slot *ended
        int result
        ring_fault fault
        atomic_uint_fast64_t in_flight, reads, writes, flushes, read_bytes, written_bytes, doorbells, sleeps, polls
        uint32_t out

    int loop_init(loop *, unsigned)
    int loop_enable(loop *)
    int loop_run(loop *)
    void loop_rouse(loop *)
    void loop_lend(loop *, const shelf *)
    void loop_take_back(loop *)
    void loop_linger(loop *)
    void loop_free_slot(loop *, slot *)
    void loop_close(loop *)
    slot *loop_slot(loop *, uint32_t)
    uint32_t loop_slots(const loop *)


cdef extern from *:
    int LOOP_ROUSED, LOOP_BATCH, LOOP_ENTRY, LOOP_ENDED, LOOP_BELL, LOOP_DOUBT, LOOP_BROKEN, LOOP_REMOVED


ROUSED, BATCH, ENTRY, ENDED = LOOP_ROUSED, LOOP_BATCH, LOOP_ENTRY, LOOP_ENDED
BELL, DOUBT, REMOVED = LOOP_BELL, LOOP_DOUBT, LOOP_REMOVED
READ, WRITE, FLUSH = PLAIN_READ, PLAIN_WRITE, PLAIN_FLUSH
ENTRIES = 256


cdef object _sentence(ring *ring, ring_fault fault):
    if fault == RING_HEAD:
        text = f"its head is at {ring.a} of {ring.size}"
    elif fault == RING_TAIL:
        text = f"its tail is at {ring.a} of {ring.size}"
    elif fault == RING_ENTRY:
        text = f"an entry of {ring.a} bytes at {ring.b} of {ring.size}"
    elif fault == RING_COMMAND:
        text = f"command {ring.a} has {ring.b} iovs and its CDB at {ring.c}"
    elif fault == RING_BUFFER:
        text = f"command {ring.a} has a buffer outside the mapping"
    elif fault == RING_TMR:
        text = f"task management over {ring.a} commands in {ring.b} bytes"
    else:
        text = f"command {ring.a} is completed and none is open"
    return RingError(f"the ring is broken: {text}")


cdef class Core:
    """The ring, as `tcmu.ring.Ring` has it, and with `prepare` the loop over it."""

    cdef loop _loop
    cdef Py_buffer _view
    cdef Py_buffer _journal_view
    cdef Py_buffer _shelf_view
    cdef object _journal
    cdef bint _viewed
    cdef bint _prepared

    def __init__(self, memory, journal=None):
        cdef uint32_t tail
        offset, size = layout(memory)
        PyObject_GetBuffer(memory, &self._view, PyBUF_WRITABLE)
        self._viewed = True
        self._loop.ring.memory = <uint8_t *>self._view.buf
        self._loop.ring.length = self._view.len
        self._loop.ring.offset = offset
        self._loop.ring.size = size
        self._loop.storage = -1
        tail = ring_tail(&self._loop.ring)[0]
        if tail >= self._loop.ring.size or tail % 8:
            PyBuffer_Release(&self._view)
            self._viewed = False
            raise RingError(f"the ring is broken: its tail is at {tail} of {size}")
        self._loop.ring.next = tail
        self._journal = journal
        if journal is not None:
            PyObject_GetBuffer(journal.memory, &self._journal_view, PyBUF_WRITABLE)
            self._loop.ring.next = journal.next
            self._see_journal()

    cdef _see_journal(self):
        self._loop.ring.journal = NULL if self._journal.lost else <uint8_t *>self._journal_view.buf
        self._loop.ring.journal_room = self._journal.room

    # ---- the ring

    @property
    def unfetched(self):
        return ring_unfetched(&self._loop.ring)

    def fetch(self, int most=-1):
        cdef ring *ring = &self._loop.ring
        cdef uint32_t head, i
        cdef ring_entry entry
        cdef ring_fault fault = ring_find_head(ring, &head)
        if fault:
            raise _sentence(ring, fault)
        entries = []
        while ring.next != head and most:
            fault = ring_look(ring, ring.next, head, &entry)
            if fault:
                raise _sentence(ring, fault)
            if entry.op == OP_CMD:
                iovs = tuple([(entry.iovs[i].offset, entry.iovs[i].length) for i in range(entry.count)])
                cdb = PyBytes_FromStringAndSize(<const char *>entry.cdb, entry.cdb_length)
                entries.append(CommandEntry(entry.id, cdb, iovs))
                if ring.journal != NULL:
                    if entry.id >= ring.journal_room:
                        self._journal.reach(entry.id)
                        self._see_journal()
                    journal_open(ring, &entry, monotonic())
                most -= 1
            elif entry.op == OP_TMR:
                ids = tuple([entry.ids[i] for i in range(entry.count)])
                entries.append(TaskManagementEntry(entry.kind, ids))
                if self._journal is not None:
                    self._journal.aborted(ids)
                most -= 1
            elif entry.op != OP_PAD:
                ring_refuse(ring, ring.next)
            ring_pass(ring, &entry)
        return entries

    def complete(self, uint16_t number, uint8_t status, bytes sense=b"", read_len=None, bint keep_buffer=False):
        cdef uint8_t[96] padded
        cdef size_t length = min(len(sense), 96)
        cdef ring_fault fault
        memset(padded, 0, 96)
        memcpy(padded, <const char *>sense, length)
        fault = ring_complete(&self._loop.ring, number, status, padded, read_len or 0, keep_buffer)
        if fault:
            raise _sentence(&self._loop.ring, fault)

    def settle(self):
        cdef ring_fault fault = ring_settle(&self._loop.ring)
        if fault:
            raise _sentence(&self._loop.ring, fault)

    def close(self):
        """I/O may be out only if the process ends."""
        self.take_back()
        if self._prepared:
            self._prepared = False
            loop_close(&self._loop)
        if self._viewed:
            self._viewed = False
            PyBuffer_Release(&self._view)
            if self._journal is not None:
                PyBuffer_Release(&self._journal_view)

    def __dealloc__(self):
        self.close()

    # ---- the loop

    def prepare(self, int uio, int bell, int wake, excluding):
        cdef int result
        cdef uint8_t opcode
        for opcode in excluding:
            self._loop.excluding[opcode] = True
        self._loop.uio, self._loop.bell, self._loop.wake = uio, bell, wake
        result = loop_init(&self._loop, ENTRIES)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        self._prepared = True

    def enable(self):
        cdef int result = loop_enable(&self._loop)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def serve(self, int storage, uint32_t block_size, uint64_t blocks, uint32_t maximum, bint writable):
        self._loop.storage = storage
        self._loop.disk.block_size = block_size
        self._loop.disk.blocks = blocks
        self._loop.disk.maximum = maximum
        self._loop.disk.writable = writable

    def lend(self, loan, uint64_t limit):
        cdef shelf shelf
        PyObject_GetBuffer(loan.memory, &self._shelf_view, PyBUF_WRITABLE)
        shelf.memory = <uint8_t *>self._shelf_view.buf
        shelf.size = self._shelf_view.len
        shelf.file, shelf.room, shelf.start, shelf.next = loan.file, loan.room, loan.start, loan.next
        shelf.number, shelf.flushed, shelf.limit, shelf.promised = loan.number, loan.flushed, limit, 0
        loop_lend(&self._loop, &shelf)

    def take_back(self):
        if self._loop.shelf.memory != NULL:
            loop_take_back(&self._loop)
            PyBuffer_Release(&self._shelf_view)

    @property
    def flushing(self):
        return self._loop.flushing

    @property
    def doubt(self):
        return -self._loop.result

    @property
    def hold(self):
        return self._loop.hold

    @hold.setter
    def hold(self, bint value):
        self._loop.hold = value

    def run(self):
        cdef int why
        with nogil:
            why = loop_run(&self._loop)
        if why < 0:
            raise OSError(-why, os.strerror(-why))
        if why == LOOP_BROKEN:
            raise _sentence(&self._loop.ring, self._loop.fault)
        return why

    def rouse(self):
        loop_rouse(&self._loop)

    def linger(self):
        with nogil:
            loop_linger(&self._loop)

    @property
    def ended(self):
        return self._loop.ended.number, self._loop.result

    def forget(self, uint32_t number):
        loop_free_slot(&self._loop, loop_slot(&self._loop, number))

    def hand_over(self):
        cdef slot *slot
        cdef uint32_t index, i
        cdef uint64_t start = <uint64_t>self._loop.ring.memory
        found = []
        for index in range(loop_slots(&self._loop)):
            slot = loop_slot(&self._loop, index)
            serial = atomic_load(&slot.serial)
            if not serial or slot.handed_over:
                continue
            slot.handed_over = True
            iovs = tuple(
                [(<uint64_t>slot.iovs[i].iov_base - start, slot.iovs[i].iov_len) for i in range(slot.iov_count)]
            )
            cdb = PyBytes_FromStringAndSize(<const char *>slot.cdb, slot.cdb_length)
            request = (<int>slot.request.op, slot.request.offset, slot.request.length, bool(slot.request.fua))
            found.append((serial, slot.number, slot.id, cdb, iovs, slot.began, request, slot.mark.number, bool(slot.waits)))
            if slot.waits:
                loop_free_slot(&self._loop, slot)
        found.sort()
        return found

    def handed_over(self):
        atomic_store(&self._loop.in_flight, 0)

    def snapshot(self):
        """Another thread runs the loop: a slot that changed under the look is left out."""
        cdef slot *slot
        cdef uint32_t index
        cdef uint64_t serial
        found = []
        if not atomic_load(&self._loop.in_flight):
            return found
        for index in range(loop_slots(&self._loop)):
            slot = loop_slot(&self._loop, index)
            serial = atomic_load(&slot.serial)
            if not serial or slot.handed_over:
                continue
            cdb = PyBytes_FromStringAndSize(<const char *>slot.cdb, min(slot.cdb_length, 16))
            request = (<int>slot.request.op, slot.request.offset, slot.request.length, bool(slot.request.fua))
            seen = (serial, slot.id, cdb, slot.began, request)
            if atomic_load(&slot.serial) == serial:
                found.append(seen)
        return found

    @property
    def serial(self):
        return self._loop.serial

    @serial.setter
    def serial(self, uint64_t value):
        self._loop.serial = value

    @property
    def in_flight(self):
        return atomic_load(&self._loop.in_flight)

    @property
    def out(self):
        return self._loop.out

    def counters(self):
        cdef loop *loop = &self._loop
        return {
            "reads": atomic_load(&loop.reads),
            "writes": atomic_load(&loop.writes),
            "others": atomic_load(&loop.flushes),
            "read_bytes": atomic_load(&loop.read_bytes),
            "written_bytes": atomic_load(&loop.written_bytes),
            "doorbells": atomic_load(&loop.doorbells),
            "sleeps": atomic_load(&loop.sleeps),
            "polls": atomic_load(&loop.polls),
        }


def plain(bytes cdb, uint64_t data_length, uint32_t block_size, uint64_t blocks, uint32_t maximum, bint writable):
    """The fast path's reading of a CDB, for a test: (op, offset, length, fua) or None."""
    cdef plain_disk disk
    cdef plain_request request
    disk.block_size, disk.blocks, disk.maximum, disk.writable = block_size, blocks, maximum, writable
    if not plain_read(<const uint8_t *><const char *>cdb, <uint32_t>len(cdb), data_length, &disk, &request):
        return None
    return <int>request.op, request.offset, request.length, bool(request.fua)
