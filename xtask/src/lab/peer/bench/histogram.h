/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The samples of one bench, as a histogram of fixed size, and the lines that tell it. `abi` and HERE are bench.c's.
 *
 * Log-linear, as in stasis (kernel/src/bench/histogram.rs): values below 64 have a bucket each, then each power of two is cut
 * into 32, so that the two sides' figures fall into the same buckets.
 */
#include <linux/bitops.h>
#include <linux/kernel.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/string.h>

#define LINEAR 64u
#define PARTS 32u
#define BUCKETS (LINEAR + PARTS * 58u)

static u32 buckets[BUCKETS];
static u32 count;
static u64 least, most;
static unsigned int printed;

static unsigned int bucket_of(u64 value)
{
	unsigned int power;

	if (value < LINEAR)
		return value;
	power = fls64(value) - 1;
	return LINEAR + (power - 6) * PARTS + ((value >> (power - 5)) & (PARTS - 1));
}

static u64 low_of(unsigned int bucket)
{
	if (bucket < LINEAR)
		return bucket;
	bucket -= LINEAR;
	return (u64)(PARTS + bucket % PARTS) << (bucket / PARTS + 1);
}

static void forget(void)
{
	memset(buckets, 0, sizeof(buckets));
	count = 0;
	least = U64_MAX;
	most = 0;
}

static void add(u64 value)
{
	count++;
	least = min(least, value);
	most = max(most, value);
	buckets[bucket_of(value)]++;
}

static u64 per_mille(unsigned int share)
{
	u64 rank = max_t(u64, DIV_ROUND_UP_ULL((u64)count * share, 1000), 1), passed = 0;
	unsigned int bucket;

	for (bucket = 0; bucket < BUCKETS; bucket++) {
		passed += buckets[bucket];
		if (passed >= rank)
			return max(low_of(bucket), least);
	}
	return most;
}

/* Buckets on one line: below what a console line can hold, whatever their values. */
#define ON_A_LINE 24u

static void print_result(const char *name, const char *variant)
{
	unsigned int bucket, filled = 0, part = 0, parts, on_line = 0;
	char line[ON_A_LINE * 32];
	int length = 0;

	pr_notice("bench name=%s unit=cycles abi=%s where=cpu%u%s%s n=%u min=%llu p50=%llu p90=%llu p99=%llu p999=%llu max=%llu\n",
		  name, abi, HERE, *variant ? " " : "", variant, count, count ? least : 0, per_mille(500), per_mille(900),
		  per_mille(990), per_mille(999), most);
	for (bucket = 0; bucket < BUCKETS; bucket++)
		filled += buckets[bucket] != 0;
	parts = DIV_ROUND_UP(filled, ON_A_LINE);
	for (bucket = 0; bucket < BUCKETS; bucket++) {
		if (!buckets[bucket])
			continue;
		length += scnprintf(line + length, sizeof(line) - length, "%s%llu:%u", on_line ? "," : "", low_of(bucket),
				    buckets[bucket]);
		filled--;
		if (++on_line == ON_A_LINE || !filled) {
			pr_notice("bench-hist name=%s part=%u of=%u buckets=%s\n", name, ++part, parts, line);
			length = on_line = 0;
		}
	}
	printed++;
}
