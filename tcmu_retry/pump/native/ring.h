/* The command ring in C; its theory is in tcmu/ring.py. All memory orders are explicit, so it holds on arm64 too. */
#ifndef TCMU_RETRY_RING_H
#define TCMU_RETRY_RING_H

#include <stdbool.h>
#include <stdint.h>

enum ring_op { OP_PAD = 0, OP_CMD = 1, OP_TMR = 2 };

/* What makes no sense; `a` and `b` go into the sentence. */
enum ring_fault {
    RING_SOUND = 0,
    RING_HEAD,    /* a: where it points */
    RING_TAIL,    /* the same */
    RING_ENTRY,   /* a: its length, b: its place */
    RING_COMMAND, /* a: id, b: number of iovs, c: place of the CDB */
    RING_BUFFER,  /* a: id */
    RING_TMR,     /* a: number of commands, b: length */
    RING_EMPTY    /* a: id that was completed while no command was open */
};

struct ring {
    uint8_t *memory; /* the whole mapping */
    uint64_t length;
    uint32_t offset; /* of the ring in the mapping */
    uint32_t size;
    uint32_t next; /* private: the next entry to fetch */
    uint64_t a, b, c;
    uint8_t *journal; /* NULL: none */
    uint32_t journal_room; /* ids below it have a place there */
};

struct ring_iov { /* as it lies in the ring; offset from the start of the mapping */
    uint64_t offset, length;
};

/* Points into the ring: good until the first completion after its fetch. */
struct ring_entry {
    enum ring_op op;
    uint32_t length;
    uint16_t id;
    uint8_t kind; /* TMR */
    uint32_t count; /* iovs, or ids of a TMR */
    uint32_t cdb_length;
    uint64_t data_length;
    const struct ring_iov *iovs;
    const uint8_t *cdb;
    const uint16_t *ids;
};

static inline uint32_t *ring_head(const struct ring *ring) { return (uint32_t *)(ring->memory + 12); }
static inline uint32_t *ring_tail(const struct ring *ring) { return (uint32_t *)(ring->memory + 64); }

static inline bool ring_unfetched(const struct ring *ring)
{
    return __atomic_load_n(ring_head(ring), __ATOMIC_ACQUIRE) != ring->next;
}

/* Where the kernel is. */
enum ring_fault ring_find_head(struct ring *ring, uint32_t *head);

/* The entry at `at`, which is not passed over. head: where the kernel is, and not `at`. */
enum ring_fault ring_look(struct ring *ring, uint32_t at, uint32_t head, struct ring_entry *entry);

static inline uint32_t ring_after(const struct ring *ring, uint32_t at, const struct ring_entry *entry)
{
    uint32_t next = at + entry->length;
    return next == ring->size ? 0 : next;
}

/* Go on behind the entry at `next`; a command was noted in the journal before. */
void ring_pass(struct ring *ring, const struct ring_entry *entry);

/* Tell the kernel that an entry's op is not known here. */
void ring_refuse(struct ring *ring, uint32_t at);

/* sense: 96 bytes, or NULL. read_len: 0 for the whole buffer. */
enum ring_fault ring_complete(struct ring *ring, uint16_t id, uint8_t status, const uint8_t *sense, uint32_t read_len,
                              bool keep_buffer);

/* Move the tail over fetched entries that want no completion. They may have been overwritten since. */
enum ring_fault ring_settle(struct ring *ring);

#endif
