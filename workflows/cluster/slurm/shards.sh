#!/bin/sh
# Run geoseg detect on SLURM without any cluster: N jobs of an array, each a share of the tiles,
# and one job that joins what they found. Nothing talks to anything but the shared file system.
#
#     SBATCH_PARTITION=night SBATCH_TIMELIMIT=04:00:00 \
#         shards.sh N [OPTIONS OF sbatch FOR A SHARE] -- IMAGES -o OUTPUT [OPTIONS OF geoseg detect]
#
# Such as: shards.sh 16 --cpus-per-task 8 --mem 16G -- ortho/*.tif -o buildings.gpkg -j 8
# A share that was killed or ran out of time is finished by the last job, or by the same command.
# --requeue, and shares that fail on a bad node, cost nothing: each goes on where it was.
set -eu
[ $# -ge 3 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
n=$1
shift
options=
while [ "$1" != -- ]; do
    options="$options $1"
    shift
    [ $# -ge 2 ] || { echo "after -- come images and options for geoseg detect" >&2; exit 2; }
done
shift
work=$(mktemp)
trap 'rm -f "$work"' EXIT
# the words of the command line, quoted, so that file names may hold blanks
words=
for word; do
    words="$words '$(printf %s "$word" | sed "s/'/'\\\\''/g")'"
done
# a job gets SIGTERM 60 s before its end and stops in order: exit code 143, nothing is lost
# shellcheck disable=SC2016  # the number is known when the share runs
printf '#!/bin/sh\nexec geoseg detect%s --shard "$SLURM_ARRAY_TASK_ID/%s"\n' "$words" "$n" >"$work"
# shellcheck disable=SC2086  # options are words, too
array=$(sbatch --parsable --array "1-$n" --job-name geoseg-shard --signal B:TERM@60 $options "$work")
printf '#!/bin/sh\nexec geoseg detect%s\n' "$words" >"$work"
# afterany: also when a share failed; what it left is done here
# shellcheck disable=SC2086
join=$(sbatch --parsable --dependency "afterany:${array%%;*}" --job-name geoseg-join --signal B:TERM@60 \
    $options "$work")
echo "shares: job ${array%%;*}, join: job ${join%%;*}; squeue --me shows them"
