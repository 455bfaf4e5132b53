#include "ring.h"
#include "journal.h"

#include <string.h>

enum { U_UNKNOWN_OP = 1, U_READ_LEN = 2, U_KEEP_BUF = 4 };
enum { IDS = 32, IOVS = 48, SENSE = 96 };

static uint16_t get16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint64_t get64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

enum ring_fault ring_find_head(struct ring *ring, uint32_t *head)
{
    *head = __atomic_load_n(ring_head(ring), __ATOMIC_ACQUIRE);
    ring->a = *head;
    return *head >= ring->size || *head % 8 ? RING_HEAD : RING_SOUND;
}

static enum ring_fault look_at_command(struct ring *ring, const uint8_t *place, struct ring_entry *entry)
{
    static const uint8_t group_length[8] = {6, 10, 10, 0, 16, 12, 0, 0};
    uint64_t start = (uint64_t)(place - ring->memory), end = start + entry->length;
    uint64_t cdb = get64(place + 24);
    uint32_t room;

    entry->count = get32(place + 8);
    ring->a = entry->id;
    ring->b = entry->count;
    ring->c = cdb;
    if (entry->count > (entry->length - IOVS) / sizeof *entry->iovs || cdb < start + IOVS || cdb >= end)
        return RING_COMMAND;
    entry->iovs = (const struct ring_iov *)(place + IOVS);
    entry->data_length = 0;
    for (uint32_t i = 0; i < entry->count; i++) {
        const struct ring_iov *iov = &entry->iovs[i];
        if (iov->length > ring->length || iov->offset > ring->length - iov->length)
            return RING_BUFFER;
        entry->data_length += iov->length;
    }
    entry->cdb = ring->memory + cdb;
    room = (uint32_t)(end - cdb);
    if (entry->cdb[0] == 0x7f) /* variable length */
        entry->cdb_length = room > 7 ? 8u + entry->cdb[7] : room;
    else
        entry->cdb_length = group_length[entry->cdb[0] >> 5];
    /* A reserved group has no length of its own: everything up to the entry's end. */
    if (!entry->cdb_length || entry->cdb_length > room)
        entry->cdb_length = room;
    return RING_SOUND;
}

/* What stands at `at`, and how long it is. end: where the entries end that may be looked at. */
static enum ring_fault look_at_entry(struct ring *ring, uint32_t at, uint32_t end, enum ring_op *op, uint32_t *length)
{
    uint32_t len_op = get32(ring->memory + ring->offset + at), room = (end > at ? end : ring->size) - at, least;

    *op = len_op & 7;
    *length = len_op & ~7u;
    least = *op == OP_CMD ? IOVS : *op == OP_TMR ? IDS : 8;
    if (*length >= least && *length <= room)
        return RING_SOUND;
    ring->a = *length;
    ring->b = at;
    return RING_ENTRY;
}

enum ring_fault ring_look(struct ring *ring, uint32_t at, uint32_t head, struct ring_entry *entry)
{
    const uint8_t *place = ring->memory + ring->offset + at;
    enum ring_fault fault = look_at_entry(ring, at, head, &entry->op, &entry->length);

    if (fault)
        return fault;
    entry->id = get16(place + 4);
    if (entry->op == OP_CMD)
        return look_at_command(ring, place, entry);
    if (entry->op == OP_TMR) {
        entry->kind = place[8];
        entry->count = get32(place + 12);
        ring->a = entry->count;
        ring->b = entry->length;
        if (entry->count > (entry->length - IDS) / 2)
            return RING_TMR;
        entry->ids = (const uint16_t *)(place + IDS);
    }
    return RING_SOUND;
}

void ring_pass(struct ring *ring, const struct ring_entry *entry)
{
    ring->next = ring_after(ring, ring->next, entry);
    journal_fetched(ring);
}

void ring_refuse(struct ring *ring, uint32_t at)
{
    ring->memory[ring->offset + at + 7] |= U_UNKNOWN_OP;
}

enum ring_fault ring_settle(struct ring *ring)
{
    uint32_t tail = *ring_tail(ring), start = tail, length;
    enum ring_fault fault = RING_SOUND;
    enum ring_op op;

    if (tail >= ring->size || tail % 8) {
        ring->a = tail;
        return RING_TAIL;
    }
    while (tail != ring->next && !(fault = look_at_entry(ring, tail, ring->next, &op, &length)) && op != OP_CMD)
        tail = tail + length == ring->size ? 0 : tail + length;
    if (tail != start)
        __atomic_store_n(ring_tail(ring), tail, __ATOMIC_RELEASE);
    return fault;
}

enum ring_fault ring_complete(struct ring *ring, uint16_t id, uint8_t status, const uint8_t *sense, uint32_t read_len,
                              bool keep_buffer)
{
    struct journal_slot *slot = journal_slot(ring, id);
    enum ring_fault fault = ring_settle(ring);
    uint8_t *place;
    uint32_t tail;

    if (fault)
        return fault;
    tail = *ring_tail(ring);
    if (tail == ring->next) {
        ring->a = id;
        return RING_EMPTY;
    }
    if (slot)
        journal_completing(slot, tail);
    place = ring->memory + ring->offset + tail;
    tail += get32(place) & ~7u;
    place[7] = (uint8_t)((read_len ? U_READ_LEN : 0) | (keep_buffer ? U_KEEP_BUF : 0));
    memcpy(place + 4, &id, sizeof id);
    memset(place + 8, 0, 4);
    place[8] = status;
    memcpy(place + 12, &read_len, sizeof read_len);
    if (sense)
        memcpy(place + 16, sense, SENSE);
    else
        memset(place + 16, 0, SENSE);
    __atomic_store_n(ring_tail(ring), tail == ring->size ? 0 : tail, __ATOMIC_RELEASE);
    if (slot)
        journal_state(slot, JOURNAL_FREE);
    return RING_SOUND;
}
