/*
 * The kernel's side of a TCMU ring, as fast as it can be had: keeps a number of READs or WRITEs in flight.
 *
 * usage: kernel MEMORY BELL DEPTH BYTES PERCENT-READS BLOCKS SECONDS
 * MEMORY: a memfd of 8 MiB for the ring and DEPTH * BYTES for data. BELL: a socket; what we write rings the handler,
 * what the handler writes is its doorbell. Prints the number of commands and the microseconds they took.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MAILBOX = 128, DATA = 8 << 20, RING = DATA - MAILBOX, ENTRY = 128 };

static uint8_t *memory;
static uint32_t *head, *tail;
static uint32_t depth, bytes, reads, cleaned;
static uint64_t blocks, state = 88172645463325252ull;

static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void put32(uint8_t *at, uint32_t value) { memcpy(at, &value, 4); }
static void put64(uint8_t *at, uint64_t value) { memcpy(at, &value, 8); }

static void queue(uint16_t id)
{
    uint32_t at = *head;
    uint8_t *entry = memory + MAILBOX + at, *cdb = entry + 112;
    uint32_t lba = (uint32_t)(draw() % (blocks - bytes / 512) / (bytes / 512) * (bytes / 512));
    uint16_t count = (uint16_t)(bytes / 512);

    memset(entry, 0, ENTRY);
    put32(entry, ENTRY | 1);
    memcpy(entry + 4, &id, 2);
    put32(entry + 8, 1);
    put64(entry + 24, (uint64_t)(cdb - memory));
    put64(entry + 48, DATA + (uint64_t)(id - 1) * bytes);
    put64(entry + 56, bytes);
    cdb[0] = draw() % 100 < reads ? 0x28 : 0x2a;
    for (int i = 0; i < 4; i++)
        cdb[2 + i] = (uint8_t)(lba >> (24 - 8 * i));
    cdb[7] = (uint8_t)(count >> 8);
    cdb[8] = (uint8_t)count;
    __atomic_store_n(head, at + ENTRY == RING ? 0 : at + ENTRY, __ATOMIC_RELEASE);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(int count, char **arguments)
{
    double began, seconds;
    uint64_t done = 0;
    int bell;
    char four[4096] = "";

    if (count != 8)
        return 2;
    bell = atoi(arguments[2]);
    depth = (uint32_t)atoi(arguments[3]);
    bytes = (uint32_t)atoi(arguments[4]);
    reads = (uint32_t)atoi(arguments[5]);
    blocks = strtoull(arguments[6], NULL, 10);
    seconds = atof(arguments[7]);
    memory = mmap(NULL, DATA + (size_t)depth * bytes, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(arguments[1]), 0);
    if (memory == MAP_FAILED)
        return 1;
    head = (uint32_t *)(memory + 12);
    tail = (uint32_t *)(memory + 64);
    if (read(bell, four, 4) != 4) /* the handler is there */
        return 1;
    began = now();
    for (uint32_t id = 1; id <= depth; id++)
        queue((uint16_t)id);
    if (write(bell, four, 4) != 4)
        return 1;
    while (now() < began + seconds) {
        struct pollfd wait = {bell, POLLIN, 0};
        uint32_t upto;
        int queued = 0;
        poll(&wait, 1, -1);
        if (read(bell, four, sizeof four) <= 0)
            return 1;
        upto = __atomic_load_n(tail, __ATOMIC_ACQUIRE);
        while (cleaned != upto) {
            uint8_t *entry = memory + MAILBOX + cleaned;
            uint16_t id;
            memcpy(&id, entry + 4, 2);
            if (!id || id > depth || entry[8]) {
                fprintf(stderr, "command %u ended with status %u\n", id, entry[8]);
                return 1;
            }
            cleaned = cleaned + ENTRY == RING ? 0 : cleaned + ENTRY;
            queue(id);
            queued++;
            done++;
        }
        if (queued && write(bell, four, 4) != 4)
            return 1;
    }
    printf("%llu %.0f\n", (unsigned long long)done, (now() - began) * 1e6);
    return 0;
}
