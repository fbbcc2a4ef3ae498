-- Shows the image of a job in `scontrol show job` (AdminComment) and `squeue -O admin_comment`:
--
--     AdminComment=shifter=docker:ubuntu:24.04
--
-- For sites without a job_submit.lua of their own: copy it to slurm.conf's directory on slurmctld's
-- host and set JobSubmitPlugins=lua. With one of your own, take shifter_image() and the lines of
-- slurm_job_submit() that use it.

-- "admin_comment" is the site's field; "comment" is the user's, and is left alone if it is used.
local FIELD = "admin_comment"

-- What the plugin has pinned for the job, by sbatch, salloc or srun. Users can forge it, so it is
-- shown and nothing else, and only if it has the characters and the length of an image's name.
local function shifter_image(job)
   for _, variable in pairs(job.spank_job_env or {}) do
      local image = variable:match("^SHIFTER_IMAGEREQUEST=([%w%._%-%+:/@]+)$")
      if image and #image <= 512 then
         return image
      end
   end
   return nil
end

function slurm_job_submit(job, partitions, uid)
   local image = shifter_image(job)
   if image and (job[FIELD] == nil or job[FIELD] == "") then
      job[FIELD] = "shifter=" .. image
   end
   return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, uid)
   return slurm.SUCCESS
end

return slurm.SUCCESS
